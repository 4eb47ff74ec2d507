//! Platforms as `os/arch[/variant]` (OCI image-spec, image index, `platform`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Platform of a manifest in an index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows` …
    #[serde(default)]
    pub os: String,
    /// As in GOARCH: `amd64`, `arm64`, `arm` …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// OS version, mostly of Windows.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

/// Error of parsing a [`Platform`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: write os/arch or os/arch/variant, as in linux/amd64 or linux/arm/v7")]
pub struct ParsePlatformError(String);

impl Platform {
    /// Whether it is one of a machine: attestations have `unknown`, or nothing.
    pub fn names_a_system(&self) -> bool {
        !self.os.is_empty() && self.os != "unknown"
    }

    /// Whether an image for this platform satisfies a request for `wanted`. Names are compared after normalization
    /// (`x86_64` is `amd64`, `aarch64` is `arm64`); arm64 without a variant is v8, arm without one v7; a request
    /// without a variant accepts any.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let (have, want) = (self.normalized(), wanted.normalized());
        have.os == want.os
            && have.architecture == want.architecture
            && (wanted.variant.is_none() || have.variant == want.variant)
            && (wanted.os_version.is_none() || have.os_version == want.os_version)
    }

    /// Returns the normalized text of a requested platform, for comparing and hashing: requests with equal text accept
    /// the same platforms. A request without a variant accepts any, and stays without.
    pub fn canonical(&self) -> String {
        let usual = self.normalized();
        let variant = self.variant.as_ref().map(|_| format!("/{}", usual.variant.unwrap_or_default()));
        let version = usual.os_version.map(|version| format!(" {version}"));
        format!("{}/{}{}{}", usual.os, usual.architecture, variant.unwrap_or_default(), version.unwrap_or_default())
    }

    /// Returns the platform with its usual names.
    pub fn normalized(&self) -> Platform {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let lower = self.architecture.to_ascii_lowercase();
        let mut variant = self.variant.as_ref().map(|v| v.to_ascii_lowercase());
        let architecture = match lower.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "i386" | "i486" | "i586" | "i686" => "386",
            "aarch64" => "arm64",
            "armhf" => {
                variant.get_or_insert_with(|| "v7".to_owned());
                "arm"
            }
            "armel" => {
                variant.get_or_insert_with(|| "v6".to_owned());
                "arm"
            }
            other => other,
        }
        .to_owned();
        match (architecture.as_str(), variant.as_deref()) {
            ("arm64", None | Some("8")) => variant = Some("v8".to_owned()),
            ("arm", None) => variant = Some("v7".to_owned()),
            ("arm", Some(v @ ("5" | "6" | "7" | "8"))) => variant = Some(format!("v{v}")),
            ("amd64", Some("v1")) => variant = None,
            _ => {}
        }
        Platform { os, architecture, variant, os_version: self.os_version.clone() }
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Platform, ParsePlatformError> {
        let error = || ParsePlatformError(crate::sanitize::sanitize(text).into_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(plain) {
            return Err(error());
        }
        Ok(Platform {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|v| (*v).to_owned()),
            os_version: None,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn variants_are_matched_as_containerd_matches_them() {
        assert!(platform("linux/arm64/v8").satisfies(&platform("linux/arm64")));
        assert!(platform("linux/arm64").satisfies(&platform("linux/arm64/v8")));
        assert!(platform("linux/aarch64").satisfies(&platform("linux/arm64")));
        assert!(platform("linux/arm/v7").satisfies(&platform("linux/arm")));
        assert!(!platform("linux/arm/v6").satisfies(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").satisfies(&platform("linux/arm64")));
        assert!(!platform("windows/amd64").satisfies(&platform("linux/amd64")));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "linux/amd64/v1/x", "linux/am d64", "/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(os in "[a-z]{1,8}", arch in "[a-z0-9]{1,8}", variant in proptest::option::of("v[0-9]")) {
            let platform = Platform { os, architecture: arch, variant, os_version: None };
            prop_assert_eq!(platform.to_string().parse::<Platform>().unwrap(), platform.clone());
            prop_assert!(platform.satisfies(&platform));
            prop_assert_eq!(platform.normalized().normalized(), platform.normalized());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Platform>();
        }
    }
}
