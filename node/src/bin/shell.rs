//! A node to look at: starts one, installs the agent in mode `observe`, and runs what comes on stdin, a line each: as root in
//! the guest, or, if it begins with `kubectl `, on the host. Ends with the input.

use std::{
    io::{self, BufRead as _},
    time::Duration,
};

use anyhow::Result;
use guard_node::{Installation, Node};

const LIMIT: Duration = Duration::from_mins(10);

#[tokio::main]
async fn main() -> Result<()> {
    let node = Node::start().await?;
    println!("{:?}; KUBECONFIG={}", node.timing(), node.plane.kubeconfig_admin().display());
    if let Err(error) = node.install(&Installation::of("observe", "mode: observe\n")).await {
        println!("the agent is not installed: {error:#}");
    }
    for line in io::stdin().lock().lines() {
        let line = line?;
        let said = match line.strip_prefix("kubectl ") {
            Some(arguments) => node.kubectl(&arguments.split_whitespace().collect::<Vec<_>>()),
            None => node.shell(&line, LIMIT).map(|output| format!("{}[{}]", output.text, output.status)),
        };
        println!("$ {line}\n{}", said.unwrap_or_else(|error| format!("{error:#}")));
    }
    Ok(())
}
