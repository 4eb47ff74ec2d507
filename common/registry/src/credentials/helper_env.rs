//! Environment variables passed to credential helpers: those that name accounts, keyrings, proxies and folders. All
//! others, such as passwords of other registries, are withheld.

use std::ffi::{OsStr, OsString};
use std::{env, fmt};

/// Variables by full name. Names are case-insensitive: proxies are written in either case, and Windows does not
/// distinguish.
const NAMES: [&str; 57] = [
    // The user, the terminal, the language, temporary files.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TMP",
    "TEMP",
    // Desktop keyrings and their dialogs.
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "DBUS_SESSION_BUS_ADDRESS",
    // gpg, which `pass` uses.
    "GNUPGHOME",
    "GPG_TTY",
    "GPG_AGENT_INFO",
    "SSH_AUTH_SOCK",
    // Locations of credentials.
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    // Network access to the clouds' services.
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    // Metadata services of Google and Azure.
    "GCE_METADATA_HOST",
    "GCE_METADATA_IP",
    "NO_GCE_CHECK",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "MSI_ENDPOINT",
    "MSI_SECRET",
    // Windows: programs do not start, and do not find their files, without these.
    "SYSTEMROOT",
    "SYSTEMDRIVE",
    "WINDIR",
    "COMSPEC",
    "PATHEXT",
    "USERNAME",
    "USERDOMAIN",
    "USERPROFILE",
    "HOMEDRIVE",
    "HOMEPATH",
    "APPDATA",
    "LOCALAPPDATA",
    "PROGRAMDATA",
    "PROGRAMFILES",
    "PROGRAMFILES(X86)",
    "COMMONPROGRAMFILES",
    "PUBLIC",
    // macOS: the keychain.
    "SECURITYSESSIONID",
    "__CF_USER_TEXT_ENCODING",
    "XPC_SERVICE_NAME",
];

/// Variables by prefix: locale and desktop, `pass`, and the helpers of the three clouds, whose SDKs read many.
const PREFIXES: [&str; 7] = ["LC_", "XDG_", "PASSWORD_STORE_", "AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_"];

/// Variables passed to credential helpers besides `PATH` and `HOME`, with their values.
#[derive(Clone, Default)]
pub struct HelperVariables(Vec<(OsString, OsString)>);

impl HelperVariables {
    /// Reads the variables that are passed to helpers from the environment of this process.
    pub fn from_process() -> HelperVariables {
        HelperVariables(env::vars_os().filter(|(name, _)| is_passed(name)).collect())
    }

    /// Returns the value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl FromIterator<(OsString, OsString)> for HelperVariables {
    fn from_iter<T: IntoIterator<Item = (OsString, OsString)>>(variables: T) -> HelperVariables {
        HelperVariables(variables.into_iter().collect())
    }
}

/// Prints names only: the values include cloud keys.
impl fmt::Debug for HelperVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Whether a variable is passed to credential helpers.
fn is_passed(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let name = name.to_ascii_uppercase();
    NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed() {
        let variables = HelperVariables::from_iter([("AWS_SECRET_ACCESS_KEY".into(), "hunter2".into())]);
        let shown = format!("{variables:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn helpers_are_given_accounts_and_folders_and_no_passwords_of_others() {
        for name in ["PATH", "https_proxy", "AWS_PROFILE", "CLOUDSDK_CONFIG", "XDG_RUNTIME_DIR", "LC_ALL", "SystemRoot"]
        {
            assert!(is_passed(OsStr::new(name)), "{name}");
        }
        for name in ["IMGSYNC_KEY", "IMGSYNC_BROKER", "HARBOR_PASSWORD", "GITHUB_TOKEN", "LD_PRELOAD", "DOCKER_HUB_PSW"]
        {
            assert!(!is_passed(OsStr::new(name)), "{name}");
        }
    }
}
