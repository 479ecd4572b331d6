//! The least role assignment.

use crate::key_stores::shared::key_store::Policy;

/// For the vault at `host`: Azure RBAC on the key, or Managed HSM's own roles.
pub(super) fn least(host: &str, key: &str) -> Policy {
    let name = host.split('.').next().unwrap_or(host);
    if host.contains(".managedhsm.") {
        let assign = |role: &str| {
            format!(
                "az keyvault role assignment create --hsm-name {name} --assignee OBJECT_ID \\\n  \
                 --role \"{role}\" --scope /keys/{key}"
            )
        };
        return Policy {
            remark: "local roles of the Managed HSM, on the key".into(),
            plugin: assign("Managed HSM Crypto Service Encryption User"),
            rotation: Some(assign("Managed HSM Crypto Officer")),
        };
    }
    let assign = |role: &str| {
        format!(
            "az role assignment create --assignee-object-id OBJECT_ID --assignee-principal-type ServicePrincipal \\\n  \
             --role \"{role}\" \\\n  \
             --scope /subscriptions/S/resourceGroups/G/providers/Microsoft.KeyVault/vaults/{name}/keys/{key}"
        )
    };
    Policy {
        remark: "Azure RBAC, with the key as scope; where the vault has access policies: key permissions get, wrapKey, unwrapKey \
                 for the plugin, get and rotate for the user that rotates"
            .into(),
        plugin: assign("Key Vault Crypto Service Encryption User"),
        rotation: Some(
            "a custom role with the data actions Microsoft.KeyVault/vaults/keys/read and \
             Microsoft.KeyVault/vaults/keys/rotate/action, on the key"
                .into(),
        ),
    }
}
