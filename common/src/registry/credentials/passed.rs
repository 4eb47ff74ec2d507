//! The environment variables that credential helpers are given: those that name accounts, keyrings, proxies and folders.
//! Whatever else this process was started with, such as the passwords of other registries, is none of their business.

use std::ffi::OsStr;

/// Variables by their whole names. Names are compared without regard to case: proxies are written in either, and Windows
/// makes no difference.
const NAMES: [&str; 56] = [
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
    // Where credentials are.
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    // The way to the clouds' services.
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

/// Variables by what their names begin with: locale and desktop, `pass`, and the helpers of the three clouds, whose SDKs
/// read many.
const PREFIXES: [&str; 7] = ["LC_", "XDG_", "PASSWORD_STORE_", "AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_"];

/// Whether credential helpers are given a variable.
pub(super) fn is_passed(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let name = name.to_ascii_uppercase();
    NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

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
