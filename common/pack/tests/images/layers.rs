//! Entries of every kind, stacked.

use sctl_squashfs::reader::Xattr;

use crate::support::*;

#[track_caller]
fn paths(files: &Files) -> Vec<&str> {
    files.keys().map(|path| &path[..]).collect()
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for layers in [vec![], vec![Layer::new()], vec![Layer::new(), Layer::new()]] {
        let files = read(&image(layers));
        assert_eq!(paths(&files), [""]);
        let root = &files[""];
        assert_eq!((root.mode, root.uid, root.mtime, root.nlink), (0o755, 0, MKFS_TIME, 2));
    }
}

#[test]
fn every_kind_comes_back() {
    let layer = Layer::new()
        .entry(b'5', b"./", b"", 0o1755, b"")
        .entry(b'0', b"setuid", b"", 0o4755, b"x")
        .entry(b'6', b"fifo", b"", 0o600, b"")
        .entry(b'3', b"null", b"", 0o666, b"")
        .entry(b'4', b"sda", b"", 0o666, b"")
        .entry(b'2', b"link", b"/../anything at all", 0o644, b"")
        .entry(0, b"old/", b"", 0o700, b"")
        .hard_link("alias", "setuid")
        .hard_link("link2", "link")
        .hard_link("null2", "null");
    let files = read(&image([layer]));
    assert_eq!(paths(&files), ["", "alias", "fifo", "link", "link2", "old", "setuid"]);
    assert_eq!((files[""].mode, files[""].uid), (0o1755, 1000));
    assert_eq!(files["setuid"].mode, 0o4755);
    assert_eq!(files["fifo"].what, What::Fifo);
    assert_eq!(files["old"].what, What::Dir);
    assert_eq!(files["link"].what, What::Symlink(b"/../anything at all".to_vec()));
    assert_eq!(files["link"].mode, 0o777);
    for (a, b) in [("setuid", "alias"), ("link", "link2")] {
        assert_eq!((files[a].inode, files[a].nlink), (files[b].inode, 2));
    }
}

#[test]
fn names_are_bytes() {
    let long = [b'n'; 255];
    let names: [&[u8]; 6] = [b"new\nline", b"\xff\xfe\x80", b" ", b"\\", &long, "gr\u{fc}n".as_bytes()];
    let layer = names.iter().fold(Layer::new(), |layer, name| layer.entry(b'0', name, b"", 0o644, name));
    let files = read(&image([layer]));
    for name in names {
        assert_eq!(contents(&files, &name.escape_ascii().to_string()), name);
    }
}

#[test]
fn odd_paths_lead_inside_the_root() {
    let layer = Layer::new()
        .file("/absolute", b"1")
        .file("./dot", b"2")
        .file("../../above", b"3")
        .file("a/../beside", b"4")
        .file("x//y/./z", b"5");
    let files = read(&image([layer]));
    assert_eq!(paths(&files), ["", "above", "absolute", "beside", "dot", "x", "x/y", "x/y/z"]);
}

#[test]
fn hard_links_lead_across_layers_and_break() {
    let lower = Layer::new().file("a", b"first").hard_link("b", "a");
    let upper = Layer::new().hard_link("c", "b").file("a", b"second");
    let files = read(&image([lower, upper]));
    assert_eq!((contents(&files, "a"), files["a"].nlink), (&b"second"[..], 1));
    assert_eq!((contents(&files, "b"), files["b"].nlink), (&b"first"[..], 2));
    assert_eq!(files["b"].inode, files["c"].inode);
}

#[test]
fn xattrs_come_back_and_go_with_their_directory() {
    let layer = Layer::new()
        .xattr("user.a", b"1")
        .xattr("security.capability", b"\x01\0\0\x02")
        .file("f", b"x")
        .xattr("user.a", b"1")
        .dir("d")
        .xattr("trusted.overlay.opaque", b"y")
        .dir("e");
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let files = read(&image([layer.clone()]));
    assert_eq!(files["f"].xattrs, [xattr("security.capability", b"\x01\0\0\x02"), xattr("user.a", b"1")]);
    assert_eq!(files["d"].xattrs, [xattr("user.a", b"1")]);
    assert_eq!(files["e"].xattrs, []);
    let files = read(&image([layer, Layer::new().dir("d")]));
    assert_eq!(files["d"].xattrs, [], "a directory entry replaces all attributes");
}

#[test]
fn a_hundred_thousand_entries_in_one_directory() {
    let layer = (0..100_000).fold(Layer::new(), |layer, i| layer.file(&format!("d/{i}"), &[]));
    let files = read(&image([layer]));
    assert_eq!(files.len(), 100_002);
}

#[test]
fn the_architecture_is_that_of_the_shell() {
    let elf = |machine: u8| {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, machine, 0];
        bytes.resize(3000, 7);
        bytes
    };
    let architecture = |layers: Vec<Layer>| {
        let packs: Vec<_> = layers.into_iter().map(Layer::pack).collect();
        merge(&packs).machine().and_then(|machine| machine.architecture())
    };
    let other = Layer::new().entry(b'0', b"a/program", b"", 0o755, &elf(183)).file("a/data", &elf(22));
    assert_eq!(architecture(vec![other.clone()]), Some("arm64"));
    let shell = Layer::new().symlink("bin", "usr/bin").file("usr/bin/dash", &elf(62)).symlink("usr/bin/sh", "dash");
    assert_eq!(architecture(vec![other, shell]), Some("amd64"));
    assert_eq!(architecture(vec![Layer::new().file("text", b"x")]), None);
}
