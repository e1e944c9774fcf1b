//! The chart: what it refuses, and what its values do.

use anyhow::Result;
use guard_deploy::{HELM, helm, objects, path, run};
use serde_json::{Value, json};

fn object(values: &[&str], kind: &str, name: &str) -> Result<Value> {
    let all = objects(&helm(values)?)?;
    let found = all.into_iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    Ok(found.unwrap_or_default())
}

fn agent(values: &[&str]) -> Result<Value> {
    let daemon_set = object(values, "DaemonSet", "egress-guard")?;
    Ok(daemon_set["spec"]["template"]["spec"].clone())
}

#[test]
fn it_is_lint_clean() -> Result<()> {
    let chart = path("deploy/helm/egress-guard").display().to_string();
    let all = "mode=evict,hardened=true,ownNode=true,podMonitor.enabled=true,prometheusRule.enabled=true,\
               dashboard.enabled=true";
    for values in ["mode=observe", all] {
        let said = run(HELM, &["lint", "--strict", &chart, "--namespace", "egress-guard", "--set", values])?;
        assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
    }
    Ok(())
}

#[test]
fn the_schema_refuses_what_would_be_misread() {
    for (values, key) in [
        ("mode=kill", "mode"),
        // Without quotes YAML 1.1 takes these for truth values.
        ("killSwitch=true", "killSwitch"),
        ("killSwitch=engaged", "killSwitch"),
        ("hardend=true", "hardend"),
        ("image.digest=sha256:beef", "digest"),
        ("config.mode=evict", "config"),
        ("networkPolicy.namespaces=x", "namespaces"),
        ("podMonitor.enable=true", "enable"),
    ] {
        let refused = helm(&[values]).expect_err(values).to_string();
        assert!(refused.contains(key) && refused.contains("schema"), "{values}: {refused}");
    }
}

#[test]
fn values_take_effect() -> Result<()> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let by_digest = agent(&["image.repository=r.example/eg", &format!("image.digest={digest}")])?;
    assert_eq!(by_digest["containers"][0]["image"], format!("r.example/eg@{digest}"));
    assert_eq!(agent(&["hardened=true"])?["hostPID"], true);
    assert_eq!(agent(&["hostPID=false"])?["hostPID"], Value::Null);
    assert_eq!(agent(&["image.tag=v9"])?["containers"][0]["image"], "egress-guard:v9");
    let agent = agent(&["extraEnv[0].name=RUST_LOG,extraEnv[0].value=debug,imagePullSecrets[0].name=pull"])?;
    let environment = agent["containers"][0]["env"].as_array().expect("an environment");
    assert!(environment.contains(&json!({"name": "RUST_LOG", "value": "debug"})), "{environment:?}");
    assert_eq!(agent["imagePullSecrets"], json!([{"name": "pull"}]));
    let namespaces = "networkPolicy.namespaces={a,b}";
    let policy = object(&[namespaces], "NetworkPolicy", "egress-guard")?;
    let from = &policy["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"];
    assert_eq!(*from, json!(["a", "b"]));
    assert_eq!(object(&["networkPolicy.enabled=false"], "NetworkPolicy", "egress-guard")?, Value::Null);
    let monitor = object(&["podMonitor.enabled=true,podMonitor.labels.release=kps"], "PodMonitor", "egress-guard")?;
    assert_eq!(monitor["metadata"]["labels"]["release"], "kps");
    Ok(())
}

#[test]
fn the_kill_switch_is_a_text_to_every_reader_of_yaml() -> Result<()> {
    assert!(helm(&[])?.contains("\n  kill-switch: \"off\"\n"));
    assert!(helm(&["killSwitch=on"])?.contains("\n  kill-switch: \"on\"\n"));
    assert!(guard_deploy::kustomize("evict", &[])?.contains("\n  kill-switch: \"off\"\n"));
    Ok(())
}

#[test]
fn another_namespace_is_named_everywhere() -> Result<()> {
    let chart = path("deploy/helm/egress-guard").display().to_string();
    let values = "mode=evict,ownNode=true,podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true";
    let text = run(HELM, &["template", "egress-guard", &chart, "--namespace", "elsewhere", "--set", values])?;
    for object in objects(&text)? {
        let (kind, metadata) = (&object["kind"], &object["metadata"]);
        let cluster_wide =
            kind.as_str().is_some_and(|kind| kind.starts_with("Cluster") || kind.starts_with("Validating"));
        assert_eq!(metadata["namespace"] == "elsewhere", !cluster_wide, "{kind} {metadata}");
        for subject in object["subjects"].as_array().into_iter().flatten() {
            assert_eq!(subject["namespace"], "elsewhere", "{kind} {metadata}");
        }
        if *kind == "ValidatingAdmissionPolicy" {
            let condition = object["spec"]["matchConditions"][0]["expression"].as_str().unwrap_or_default();
            assert!(condition.contains("'system:serviceaccount:elsewhere:egress-guard'"), "{condition}");
        }
    }
    Ok(())
}
