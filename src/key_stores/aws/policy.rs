//! The least IAM policy.

use serde_json::{Value, json};

use super::key::KeyName;
use crate::kek::ClusterName;
use crate::key_stores::shared::key_store::Policy;

/// The statements for the plugin: with the condition, the role of one cluster cannot open another's DEKs.
pub(super) fn least(key: &KeyName, cluster: &ClusterName) -> Policy {
    let (resource, by_alias) = resource(key);
    let use_key = json!({
        "Effect": "Allow",
        "Action": ["kms:Encrypt", "kms:Decrypt"],
        "Resource": resource,
        "Condition": {
            "StringEquals": {
                "kms:EncryptionContext:purpose": "kube-envelope dek 1",
                "kms:EncryptionContext:cluster": cluster.as_str(),
            },
            "ForAllValues:StringEquals": { "kms:EncryptionContextKeys": ["purpose", "cluster", "dek"] },
        },
    });
    let describe = json!({ "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": resource });
    let rotate =
        json!({ "Effect": "Allow", "Action": ["kms:RotateKeyOnDemand", "kms:DescribeKey"], "Resource": resource });
    let mut remark =
        String::from("IAM policy for the plugin's role, where the key policy delegates to IAM; else key policy");
    if by_alias {
        remark
            .push_str(". Put the ARN of the key itself for REGION, ACCOUNT and KEY-ID: an alias cannot be a Resource");
    }
    Policy { remark, plugin: document(&[use_key, describe]), rotation: Some(document(&[rotate])) }
}

/// The key's ARN, and whether parts of it have to be filled in.
fn resource(key: &KeyName) -> (String, bool) {
    let name = key.to_string();
    if key.region().is_some() && !key.is_alias() {
        (name, false)
    } else if key.is_alias() {
        ("arn:aws:kms:REGION:ACCOUNT:key/KEY-ID".into(), true)
    } else {
        (format!("arn:aws:kms:REGION:ACCOUNT:key/{name}"), true)
    }
}

fn document(statements: &[Value]) -> String {
    serde_json::to_string_pretty(&json!({ "Version": "2012-10-17", "Statement": statements })).unwrap_or_default()
}
