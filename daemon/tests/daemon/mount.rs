//! mount.sock, well used and abused.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use prost::Message as _;
use sctl_engine::JobUser;
use sctl_proto::v1::{ImageRequest, MountWish, OpenReply, OpenRequest, open_reply::Status, open_request::What};
use sctl_sys::scm;

use super::fake::{CONTENT, Fake, Served, TICKET};

fn connect(served: &Served) -> OwnedFd {
    let socket = scm::connect(&served.mount_socket()).unwrap();
    scm::set_timeout(&socket, Duration::from_secs(10)).unwrap();
    socket
}

fn request(what: Option<What>) -> Vec<u8> {
    OpenRequest { what, ..OpenRequest::default() }.encode_to_vec()
}

fn ticket(bytes: &[u8]) -> Vec<u8> {
    request(Some(What::Ticket(bytes.to_vec())))
}

fn answer(socket: &OwnedFd) -> Option<(OpenReply, Vec<OwnedFd>)> {
    let mut buffer = vec![0; sctl_proto::MAX_OPEN_MESSAGE];
    let received = scm::recv(socket, &mut buffer).ok()?;
    if received.len == 0 {
        return None;
    }
    Some((OpenReply::decode(&buffer[..received.len]).unwrap(), received.fds))
}

#[test]
fn a_ticket_brings_a_read_only_descriptor() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    // Several requests may follow each other on one connection.
    for _ in 0..2 {
        scm::send(&socket, &ticket(&TICKET.0), &[]).unwrap();
        let (reply, fds) = answer(&socket).unwrap();
        assert_eq!(reply.status(), Status::Sif);
        assert_eq!(reply.reference, "registry.example/image:1");
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert_eq!(flags & rustix::fs::OFlags::RWMODE, rustix::fs::OFlags::RDONLY);
        let mut content = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut content).unwrap();
        assert_eq!(content, CONTENT);
    }
}

#[test]
fn a_wish_that_cannot_be_granted_is_answered_with_a_reason() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    for wish in [MountWish::Unspecified, MountWish::Shared, MountWish::Private] {
        let what = Some(What::Ticket(TICKET.0.to_vec()));
        scm::send(&socket, &OpenRequest { what, mount: wish.into() }.encode_to_vec(), &[]).unwrap();
        let (reply, fds) = answer(&socket).unwrap();
        assert_eq!((reply.status(), reply.mounted, fds.len()), (Status::Sif, false, 1), "{wish:?}");
        assert_eq!(reply.no_mount.is_empty(), wish == MountWish::Unspecified, "{wish:?}");
    }
}

#[test]
fn what_is_not_available_has_one_answer() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    let image = ImageRequest { reference: "ubuntu".to_owned(), platform: String::new() };
    let image = request(Some(What::Image(image)));
    for message in [ticket(&[1; 16]), image] {
        scm::send(&socket, &message, &[]).unwrap();
        let (reply, fds) = answer(&socket).unwrap();
        let expected = OpenReply { status: Status::NotAvailable.into(), ..OpenReply::default() };
        assert_eq!((reply, fds.len()), (expected, 0));
    }
}

#[test]
fn nonsense_is_refused_and_ends_the_connection() {
    let served = Served::start(Fake::default(), None);
    let unnamed = ImageRequest { reference: "NOT valid".to_owned(), platform: String::new() };
    let cases: [(&str, Vec<u8>); 6] = [
        ("garbage", vec![0xff; 100]),
        ("no target", request(None).into_iter().chain([0x78, 1]).collect()),
        ("short ticket", ticket(&[1; 3])),
        ("bad reference", request(Some(What::Image(unnamed)))),
        ("one byte too long", ticket(&vec![1; sctl_proto::MAX_OPEN_MESSAGE - 2])),
        ("far too long", vec![0; 100 << 10]),
    ];
    for (name, message) in cases {
        let socket = connect(&served);
        scm::send(&socket, &message, &[]).unwrap();
        let (reply, fds) = answer(&socket).unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((reply.status(), fds.len()), (Status::BadRequest, 0), "{name}");
        assert!(answer(&socket).is_none(), "{name}: the connection is open");
    }
    assert_eq!(served.calls(), [""; 0], "the engine was not bothered");
}

#[test]
fn unsolicited_descriptors_are_closed_and_refused() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let sent = scm::send(&socket, &ticket(&TICKET.0), &[writer.as_fd()]);
    drop(writer);
    match sent {
        // The kernel refuses for the daemon.
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::PERM.raw_os_error()), "{error}");
            assert!(scm::refuse_descriptors(&socket).unwrap(), "the kernel can");
            assert_eq!(served.calls(), [""; 0], "nothing has arrived");
        }
        Ok(()) => assert_eq!(answer(&socket).unwrap().0.status(), Status::BadRequest),
    }
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the daemon does not keep it");
}

#[test]
fn silent_clients_are_sent_away() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    let started = Instant::now();
    assert!(answer(&socket).is_none());
    assert!(started.elapsed() >= Duration::from_millis(250), "too early");
    assert!(started.elapsed() < Duration::from_secs(5), "too late");
}

#[test]
fn who_has_said_all_is_answered_all_the_same() {
    let served = Served::start(Fake::default(), None);
    let socket = connect(&served);
    scm::send(&socket, &ticket(&TICKET.0), &[]).unwrap();
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap();
    let (reply, fds) = answer(&socket).unwrap();
    assert_eq!((reply.status(), fds.len()), (Status::Sif, 1));
    assert!(answer(&socket).is_none(), "and that was it");
}

#[test]
fn who_takes_no_answers_is_sent_away_and_keeps_nobody_waiting() {
    let served = Served::start(Fake::default(), None);
    let deaf: Vec<OwnedFd> = (0..8).map(|_| connect(&served)).collect();
    std::thread::scope(|scope| {
        for socket in &deaf {
            // Until the daemon has closed its end.
            scope.spawn(move || while scm::send(socket, &ticket(&TICKET.0), &[]).is_ok() {});
        }
        for _ in 0..20 {
            let socket = connect(&served);
            scm::send(&socket, &ticket(&TICKET.0), &[]).unwrap();
            assert_eq!(answer(&socket).unwrap().0.status(), Status::Sif);
        }
    });
}

#[test]
fn one_user_has_so_many_connections() {
    let served = Served::start(Fake::default(), None);
    let held: Vec<OwnedFd> = (0..64).map(|_| connect(&served)).collect();
    // The daemon takes them in the order of their arrival. Whether it hears
    // what is asked or not, the answer arrives.
    for asks in [false, true, true, true] {
        let socket = connect(&served);
        if asks {
            let _ = scm::send(&socket, &ticket(&TICKET.0), &[]);
        }
        assert_eq!(answer(&socket).unwrap().0.status(), Status::Busy);
    }
    drop(held);
    super::fake::wait_until("others are gone", || {
        let socket = connect(&served);
        scm::send(&socket, &ticket(&TICKET.0), &[]).is_ok()
            && answer(&socket).is_some_and(|(reply, _)| reply.status() == Status::Sif)
    });
}

/// Connects as another user, which only the calling thread becomes.
fn connect_as(served: &Served, uid: u32, count: usize) -> Vec<OwnedFd> {
    let path = served.mount_socket();
    let connecting = std::thread::spawn(move || {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        (0..count).map(|_| scm::connect(&path).unwrap()).collect()
    });
    connecting.join().unwrap()
}

#[test]
fn privileged_subordinate_ids_count_as_their_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become other users");
        return;
    }
    let subuid = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let range = subuid.lines().find_map(|line| line.strip_prefix("sctl-test-a:")?.split(':').next()?.parse().ok());
    let (Some(first), Ok(a), Ok(b)) = (range, JobUser::lookup("sctl-test-a"), JobUser::lookup("sctl-test-b")) else {
        eprintln!("SKIPPED: needs the test users and subordinate ids of theirs");
        return;
    };
    let first: u32 = first;
    let served = Served::start_system(Fake::default());
    let held: Vec<OwnedFd> = (0..64).flat_map(|n| connect_as(&served, first + n, 1)).collect();
    for uid in [a.uid, first, first + 1000] {
        let refused = connect_as(&served, uid, 1);
        assert_eq!(answer(&refused[0]).unwrap().0.status(), Status::Busy, "{uid}");
    }
    let other = connect_as(&served, b.uid, 1);
    scm::send(&other[0], &ticket(&TICKET.0), &[]).unwrap();
    assert_eq!(answer(&other[0]).unwrap().0.status(), Status::Sif);
    // What an account counts gives no right: the engine sees who it is.
    drop(held);
    super::fake::wait_until("others are gone", || {
        let socket = connect_as(&served, first, 1);
        scm::send(&socket[0], &ticket(&TICKET.0), &[]).is_ok()
            && answer(&socket[0]).is_some_and(|(reply, _)| reply.status() == Status::Sif)
    });
    let caller = served.engine.calls.lock().unwrap().last().unwrap().0;
    assert_eq!((caller.uid, caller.account), (first, a.uid));
}
