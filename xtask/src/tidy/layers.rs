//! Holds the layering: which crate of ours may use which, and what the pure ones may use from outside.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::run;

/// What a crate of ours may depend on.
struct Rule {
    /// Without the `evenkeel-` in front.
    name: &'static str,
    ours: &'static [&'static str],
    /// `None`: whatever `deny.toml` permits.
    others: Option<&'static [&'static str]>,
}

const ROLE: &[&str] = &["model", "fleet", "protocol", "runtime"];

/// `tests` may also use these, whatever the rule says: they drive pure code from outside.
const TEST_ONLY: &[&str] = &["proptest", "expect-test", "criterion"];

/// No crate of ours is without a rule.
const RULES: &[Rule] = &[
    Rule { name: "model", ours: &[], others: Some(&["libm", "thiserror"]) },
    Rule { name: "fleet", ours: &["model"], others: Some(&["libm", "thiserror"]) },
    Rule {
        name: "protocol",
        ours: &["model"],
        others: Some(&[
            "thiserror",
            "serde",
            "serde_json",
            "httparse",
            "sha1",
            "base64",
            "ring",
            "form_urlencoded",
        ]),
    },
    Rule { name: "runtime", ours: &["model"], others: None },
    // The only one that may contain unsafe code, so the least around it.
    Rule { name: "ring", ours: &[], others: Some(&["io-uring", "thiserror"]) },
    Rule { name: "gateway", ours: &["model", "fleet", "protocol", "runtime", "ring"], others: None },
    Rule { name: "controller", ours: ROLE, others: None },
    Rule { name: "agent", ours: &["model", "protocol"], others: None },
    Rule { name: "client", ours: &["model", "protocol"], others: None },
    Rule {
        name: "sim",
        ours: &["model", "fleet", "protocol"],
        others: Some(&["thiserror", "serde", "serde_json", "toml"]),
    },
    Rule {
        name: "evenkeel",
        ours: &["model", "fleet", "protocol", "runtime", "gateway", "controller", "agent", "client", "sim"],
        others: None,
    },
    Rule { name: "xtask", ours: &["protocol"], others: None },
];

/// What cargo knows of the workspace.
pub(super) fn metadata() -> Result<Value> {
    let text = run::output(run::cargo(&["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    serde_json::from_str(&text).context("could not read what cargo metadata printed")
}

/// Every dependency that no rule permits.
pub(super) fn check(metadata: &Value) -> Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(packages.iter().flat_map(check_package).collect())
}

fn check_package(package: &Value) -> Vec<Finding> {
    let name = package["name"].as_str().unwrap_or_default();
    let find = |what: String| Finding { path: name.to_owned(), line: 0, what };
    let Some(rule) = RULES.iter().find(|rule| short(name) == rule.name) else {
        return vec![find("no layering rule in xtask/src/tidy/layers.rs".to_owned())];
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let refused = dependencies.iter().filter(|dependency| !permitted(rule, dependency));
    refused
        .map(|dependency| find(format!("may not depend on {}", dependency["name"].as_str().unwrap_or("?"))))
        .collect()
}

fn permitted(rule: &Rule, dependency: &Value) -> bool {
    let name = dependency["name"].as_str().unwrap_or_default();
    // Only crates of this workspace come by path.
    if !dependency["path"].is_null() {
        // Its own tests may turn its features on.
        let itself = dependency["kind"] == "dev" && short(name) == rule.name;
        return itself || rule.ours.contains(&short(name));
    }
    let test_only = dependency["kind"] == "dev" && TEST_ONLY.contains(&name);
    test_only || rule.others.is_none_or(|others| others.contains(&name))
}

fn short(name: &str) -> &str {
    name.strip_prefix("evenkeel-").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::lines;
    use super::*;

    #[test]
    fn dependencies_against_the_layering_are_found() {
        let ours = |name: &str| json!({"name": name, "path": "x", "kind": null});
        let other = |name: &str, kind: Value| json!({"name": name, "path": null, "kind": kind});
        let metadata = json!({"packages": [
            {"name": "evenkeel-fleet", "dependencies": [
                ours("evenkeel-model"), ours("evenkeel-protocol"), other("libm", Value::Null),
                other("serde", Value::Null), other("proptest", json!("dev")), other("tokio", json!("dev")),
            ]},
            {"name": "evenkeel-gateway", "dependencies": [ours("evenkeel-controller"), other("tokio", Value::Null)]},
            {"name": "evenkeel-agent", "dependencies": [
                json!({"name": "evenkeel-agent", "path": "x", "kind": "dev"}), ours("evenkeel-agent"),
            ]},
            {"name": "evenkeel-util", "dependencies": []},
        ]});
        assert_eq!(
            lines(&check(&metadata).unwrap()),
            [
                "evenkeel-fleet: may not depend on evenkeel-protocol",
                "evenkeel-fleet: may not depend on serde",
                "evenkeel-fleet: may not depend on tokio",
                "evenkeel-gateway: may not depend on evenkeel-controller",
                "evenkeel-agent: may not depend on evenkeel-agent",
                "evenkeel-util: no layering rule in xtask/src/tidy/layers.rs",
            ]
        );
    }
}
