//! Pulls an image through a running daemon and prints all that it says:
//! `cargo run --example pull -- SOCKET REFERENCE [OUT]`.

use std::{io::Write as _, path::Path};

use anyhow::Context as _;
use prost::Message as _;
use sctl_proto::v1::{OpenReply, OpenRequest, PullRequest, open_request::What, pull_event::Kind, sctl_client};
use sctl_sys::scm;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, reference, out) = match &arguments[..] {
        [socket, reference] => (socket, reference, None),
        [socket, reference, out] => (socket, reference, Some(out)),
        _ => anyhow::bail!("usage: pull SOCKET REFERENCE [OUT]"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ticket = runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{socket}"))?;
        let mut client = sctl_client::SctlClient::new(endpoint.connect().await?);
        let request = PullRequest { reference: reference.clone(), ..PullRequest::default() };
        let mut events = match client.pull(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => anyhow::bail!("{:#?}", sctl_proto::from_status(&status)),
        };
        loop {
            match events.message().await {
                Ok(Some(event)) => {
                    println!("{event:?}");
                    if let Some(Kind::Done(done)) = event.kind {
                        return Ok(done.ticket);
                    }
                }
                Ok(None) => anyhow::bail!("the stream ended early"),
                Err(status) => anyhow::bail!("{:#?}", sctl_proto::from_status(&status)),
            }
        }
    })?;
    let mount = scm::connect(&Path::new(socket).with_file_name("mount.sock"))?;
    let request = OpenRequest { what: Some(What::Ticket(ticket)), ..OpenRequest::default() };
    scm::send(&mount, &request.encode_to_vec(), &[])?;
    let mut buffer = vec![0; sctl_proto::MAX_OPEN_MESSAGE];
    let received = scm::recv(&mount, &mut buffer)?;
    let reply = OpenReply::decode(&buffer[..received.len])?;
    println!("{reply:?}");
    let fd = received.fds.into_iter().next().context("no descriptor")?;
    if let Some(out) = out {
        let mut target = std::fs::File::create(out)?;
        std::io::copy(&mut std::fs::File::from(fd), &mut target)?;
        target.flush()?;
    }
    Ok(())
}
