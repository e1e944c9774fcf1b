//! `guard-agent kill-switch`: for root on the node, with or without an agent that answers.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::time;

use super::{By, Status};
use crate::{
    client,
    kernel::kill_switch::{KillSwitch, Source},
};

/// How long an agent may take to answer: the kill switch does not need it.
const ANSWER: Duration = Duration::from_millis(300);

/// Engages it for the operator, and says what that did.
pub async fn on(bpffs: &Path, socket: &Path, reason: Option<&str>) -> Result<()> {
    let switch = KillSwitch::open(bpffs, &[])?;
    let before = operator(&Status::of(&switch)?).cloned();
    switch.engage(Source::Operator, &who("guard-agent kill-switch", &myself(), reason))?;
    // As whoever comes next will find it: `cleanup` may have removed it meanwhile.
    let now = status(bpffs)?;
    let Some(by) = operator(&now) else {
        bail!("the kill switch in {} was removed or released while it was engaged: try again", bpffs.display());
    };
    let agent = agent(socket, &now).await;
    let agent = agent.with_context(|| format!("engaged the kill switch in {}, to no effect", bpffs.display()))?;
    match before {
        Some(before) => println!("the kill switch was engaged already, by {before}\nit is now by {by}"),
        None => println!("the kill switch is engaged, by {by}"),
    }
    println!("the kernel lifts every containment at once, nothing new is contained or evicted");
    println!("it stays so until `guard-agent kill-switch off`, also when the agent ends or starts");
    println!("{agent}");
    Ok(())
}

/// Releases it for the operator. It is an error if somebody else still engages it.
pub async fn off(bpffs: &Path, socket: &Path) -> Result<()> {
    // Made if it is not there: it then says that it was released, whatever an agent remembers from before a reboot.
    let switch = KillSwitch::open(bpffs, &[])?;
    let before = operator(&Status::of(&switch)?).cloned();
    switch.release(Source::Operator)?;
    let now = Status::of(&switch)?;
    match before {
        Some(before) => println!("released the kill switch for the operator; it was engaged by {before}"),
        None => println!("the kill switch was not engaged by the operator"),
    }
    if now.engaged {
        let by: Vec<String> = now.by.iter().map(|by| format!("by {by} ({})", remedy(by))).collect();
        bail!("THE KILL SWITCH IS STILL ENGAGED {}", by.join("; "));
    }
    let agent = agent(socket, &now).await?;
    println!("it is not engaged: an agent contains and evicts again what breaches its limits, as far as its mode says");
    println!("{agent}");
    Ok(())
}

/// Says whether it is engaged, and makes nothing.
pub async fn show(bpffs: &Path, socket: &Path, json: bool) -> Result<()> {
    let now = status(bpffs)?;
    if json {
        println!("{}", serde_json::to_string(&now)?);
        return Ok(());
    }
    if now.engaged {
        println!("engaged: nothing is contained or evicted");
        now.by.iter().for_each(|by| println!("  by {by} ({})", remedy(by)));
    } else if KillSwitch::existing(bpffs)?.is_some() {
        println!("not engaged");
    } else {
        println!("not engaged (nothing is pinned at {})", bpffs.display());
    }
    match agent(socket, &now).await {
        Ok(said) => println!("{said}"),
        Err(error) => println!("BUT {error}"),
    }
    Ok(())
}

fn status(bpffs: &Path) -> Result<Status> {
    Ok(KillSwitch::existing(bpffs)?.map(|switch| Status::of(&switch)).transpose()?.unwrap_or_default())
}

fn operator(status: &Status) -> Option<&By> {
    status.by.iter().find(|by| by.source == "operator")
}

/// How what still engages it is released.
fn remedy(by: &By) -> &'static str {
    match by.source.as_str() {
        "operator" => "release it: guard-agent kill-switch off",
        "file" => {
            "set `killSwitch: false` in that file: a running agent takes it over within seconds, any other as it starts"
        }
        "cluster" => {
            "write \"off\" there: kubectl -n egress-guard patch configmap egress-guard --type merge -p \
             '{\"data\":{\"kill-switch\":\"off\"}}'; it holds for all nodes, and an agent that runs takes it over"
        }
        _ => "release it with the newer version of this program that engaged it",
    }
}

/// Whether an agent answers, and goes by this kill switch. It is an error if it goes by another.
async fn agent(socket: &Path, ours: &Status) -> Result<String> {
    let at = socket.display();
    let Ok(answer) = time::timeout(ANSWER, client::get(socket, "/kill-switch")).await else {
        return Ok(format!(
            "the agent at {at} does not answer: it hangs. The kernel goes by the kill switch all the same"
        ));
    };
    let answer = match answer {
        Ok(answer) => serde_json::from_slice::<Status>(&answer)?,
        Err(error) => return Ok(format!("{error} (the kernel goes by the kill switch all the same)")),
    };
    if answer.engaged != ours.engaged {
        let theirs = if answer.engaged { "engaged" } else { "not engaged" };
        bail!(
            "the agent at {at} goes by another kill switch, and that is {theirs}: pass the --bpffs that it runs with, \
             from the same mount namespace"
        );
    }
    Ok(format!("the agent at {at} answers, and goes by it"))
}

/// What is kept of who engages it.
pub fn who(via: &str, person: &str, reason: Option<&str>) -> String {
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{person}, via {via}{reason}")
}

/// Whoever runs this, through sudo and su if that can be known.
fn myself() -> String {
    let sudo = env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    let login = fs::read_to_string("/proc/self/loginuid").ok().and_then(|uid| uid.trim().parse().ok());
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    person(sudo, login, rustix::process::getuid().as_raw(), &users)
}

fn person(sudo: Option<u32>, login: Option<u32>, uid: u32, users: &str) -> String {
    // Of a process that no login has led to.
    const UNSET: u32 = u32::MAX;
    let uid = sudo.or(login.filter(|&uid| uid != UNSET)).unwrap_or(uid);
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_person_behind_root_is_named() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let cases = [
            (None, None, 0, "root (uid 0)"),
            (None, Some(u32::MAX), 0, "root (uid 0)"),
            (None, Some(1000), 0, "ann (uid 1000)"),
            (Some(1000), Some(7), 0, "ann (uid 1000)"),
            (Some(1001), None, 0, "uid 1001"),
        ];
        for (sudo, login, uid, expected) in cases {
            assert_eq!(person(sudo, login, uid, users), expected);
        }
        assert_eq!(who("x", "root (uid 0)", Some("drill")), "root (uid 0), via x: drill");
        assert_eq!(who("x", "root (uid 0)", None), "root (uid 0), via x");
    }
}
