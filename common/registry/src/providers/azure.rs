//! Azure Container Registry.

mod identity;

use super::Provider;

// Size of each PATCH to Azure's registries, which were seen to cut bodies of more than 20 MB.
pub(super) static AZURE: Provider = Provider {
    name: "Azure",
    hosts: &[".azurecr.io"],
    secret_variables: &["AZURE_CLIENT_SECRET", "IDENTITY_HEADER"],
    chunk_bytes: Some(16 << 20),
    identity: Some(&identity::AzureIdentity),
    ..Provider::NONE
};
