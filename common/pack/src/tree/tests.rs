use sctl_common::{DiffId, Digest, Profile};

use super::*;
use crate::index::{HEADER_LEN, IndexBuilder};
use crate::tree::{FileKind, IfExists};

/// Something that a layer may say.
enum Says<'a> {
    Dir(&'a str, u16),
    File(&'a str),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
    Hide(&'a str),
    Opaque(&'a str),
}
use Says::{Device, Dir, File, Hard, Hide, Link, Opaque};

/// A pack without contents; its files are all empty and told apart by uid,
/// which is the place of their entry in the layer.
fn pack(says: &[Says<'_>]) -> PackIndex {
    let profile = Profile::default();
    let mut index = IndexBuilder::default();
    for (uid, says) in (0..).zip(says) {
        let attributes = Attributes { mode: 0o644, uid, gid: 7, ..Attributes::default() };
        match says {
            Dir(path, mode) => index.directory(path.as_bytes(), &Attributes { mode: *mode, ..attributes }),
            File(path) => index.file(path.as_bytes(), &attributes, None),
            Link(path, target) => index.symlink(path.as_bytes(), &attributes, target.as_bytes()),
            Hard(path, target) => index.hard_link(path.as_bytes(), target.as_bytes()),
            Device(path) => index.device(path.as_bytes()),
            Hide(path) => index.whiteout(path.as_bytes()),
            Opaque(path) => index.opaque(path.as_bytes()),
        }
    }
    let mut bytes = crate::index::write_header(&profile).to_vec();
    let diff_id = DiffId::new(Digest::of(b""));
    bytes.extend(index.finish(&profile, &diff_id, &[], &[], HEADER_LEN as u64, 0).unwrap());
    PackIndex::read(&bytes, &profile, &Limits::default()).unwrap()
}

fn merge(layers: &[&[Says<'_>]]) -> Result<Tree, MergeError> {
    let packs: Vec<_> = layers.iter().map(|says| pack(says)).collect();
    Tree::merge(&packs, &Limits::default())
}

/// All paths, directories with a slash, symlinks with their target.
fn paths(tree: &Tree) -> Vec<String> {
    fn collect(tree: &Tree, id: NodeId, prefix: &str, into: &mut Vec<String>) {
        for (name, child) in &tree.directory(id).unwrap().entries {
            let path = format!("{prefix}{name}");
            match &tree.node(child.node).kind {
                NodeKind::Directory(_) => {
                    into.push(format!("{path}/"));
                    collect(tree, child.node, &format!("{path}/"), into);
                }
                NodeKind::Symlink(target) => into.push(format!("{path}>{}", target.escape_ascii())),
                NodeKind::Device => into.push(format!("{path}#")),
                _ => into.push(path),
            }
        }
    }
    let mut all = Vec::new();
    collect(tree, ROOT, "", &mut all);
    all
}

#[track_caller]
fn merged(layers: &[&[Says<'_>]], expected: &[&str]) -> Tree {
    let tree = merge(layers).unwrap();
    assert_eq!(paths(&tree), expected);
    tree
}

#[test]
fn whiteouts_hide_lower_layers_only_in_any_order() {
    let lower: &[Says<'_>] = &[Dir("d", 0o755), File("d/a"), File("d/b"), Dir("d/s", 0o755), File("d/s/x"), File("e")];
    merged(&[lower, &[Hide("d/a"), Hide("missing"), Hide("no/such")]], &["d/", "d/b", "d/s/", "d/s/x", "e"]);
    merged(&[lower, &[File("d/a"), Hide("d/a")]], &["d/", "d/a", "d/b", "d/s/", "d/s/x", "e"]);
    merged(&[lower, &[Hide("d"), File("d/n")]], &["d/", "d/n", "e"]);
    merged(&[lower, &[File("d/n"), Hide("d")]], &["d/", "d/n", "e"]);
    merged(&[lower, &[File("d/s/n"), Hide("d")]], &["d/", "d/s/", "d/s/n", "e"]);
    merged(&[lower, &[Dir("d", 0o700), Hide("d")]], &["d/", "e"]);
    merged(&[&[File("x"), Hide("x")]], &["x"]);
}

#[test]
fn opaque_hides_only_lower_entries_in_any_order() {
    let lower: &[Says<'_>] = &[File("d/a"), File("d/s/x"), File("e")];
    merged(&[lower, &[Opaque("d")]], &["d/", "e"]);
    merged(&[lower, &[Opaque("d"), File("d/n")]], &["d/", "d/n", "e"]);
    merged(&[lower, &[File("d/s/n"), File("d/n"), Opaque("d")]], &["d/", "d/n", "d/s/", "d/s/n", "e"]);
    merged(&[lower, &[Opaque("")]], &[]);
    merged(&[lower, &[File("n"), Opaque("")]], &["n"]);
    merged(&[lower, &[Opaque("e"), Opaque("missing")]], &["d/", "d/a", "d/s/", "d/s/x", "e"]);
    merged(&[lower, &[Opaque("d")], &[File("d/z")]], &["d/", "d/z", "e"]);
    // Attributes of the directory stay those of the lower layer.
    let tree = merged(&[&[Dir("d", 0o711), File("d/a")], &[Opaque("d")]], &["d/"]);
    assert_eq!(tree.node(tree.child(ROOT, b"d").unwrap().node).mode, 0o711);
}

#[test]
fn entries_replace_what_is_there_unless_both_are_directories() {
    let lower: &[Says<'_>] = &[Dir("d", 0o755), File("d/a"), File("f"), Link("l", "d")];
    merged(&[lower, &[File("d")]], &["d", "f", "l>d"]);
    merged(&[lower, &[Link("d", "f")]], &["d>f", "f", "l>d"]);
    merged(&[lower, &[Dir("l", 0o755)]], &["d/", "d/a", "f", "l/"]);
    merged(&[lower, &[Dir("f", 0o755)]], &["d/", "d/a", "f/", "l>d"]);
    merged(&[lower, &[Device("f")]], &["d/", "d/a", "f#", "l>d"]);
    let tree = merged(&[lower, &[Dir("d", 0o700)]], &["d/", "d/a", "f", "l>d"]);
    assert_eq!(tree.node(tree.child(ROOT, b"d").unwrap().node).mode, 0o700);
    let tree = merged(&[&[File("x"), File("y"), File("x")]], &["x", "y"]);
    assert_eq!(tree.node(tree.child(ROOT, b"x").unwrap().node).uid, 2, "the last one wins");
}

#[test]
fn parents_are_found_through_symlinks_and_made_where_missing() {
    merged(&[&[Dir("d", 0o755), Link("l", "d")], &[File("l/a")]], &["d/", "d/a", "l>d"]);
    merged(&[&[Link("l", "/no/where"), File("l/a")]], &["l>/no/where", "no/", "no/where/", "no/where/a"]);
    merged(&[&[Link("l", "../../up"), File("l/a")]], &["l>../../up", "up/", "up/a"]);
    merged(&[&[Link("a", "b"), Link("b", "c"), File("a/x/y")]], &["a>b", "b>c", "c/", "c/x/", "c/x/y"]);
    merged(&[&[Link("l", "m/../n"), File("l/a")]], &["l>m/../n", "n/", "n/a"]);
    merged(&[&[Dir("d", 0o755), File("d/x"), Link("l", "d")], &[Hide("l/x")]], &["d/", "l>d"]);
    merged(&[&[File("d/x"), Link("l", "d")], &[Opaque("l")]], &["d/", "l>d"]);
    let tree = merged(&[&[File("a/b/c")]], &["a/", "a/b/", "a/b/c"]);
    let a = tree.node(tree.child(ROOT, b"a").unwrap().node);
    assert_eq!((a.mode, a.uid, a.mtime), (0o755, 0, None));
    let tree = merged(&[&[File("x"), Dir("d", 0o2700), File("d/a/b")]], &["d/", "d/a/", "d/a/b", "x"]);
    let a = tree.node(tree.child(tree.child(ROOT, b"d").unwrap().node, b"a").unwrap().node);
    assert_eq!((a.mode, a.uid, a.gid), (0o2755, 0, 7), "setgid is handed down");
}

#[test]
fn hard_links_share_inodes_across_layers_until_a_name_is_replaced() {
    let node = |tree: &Tree, name: &str| tree.child(ROOT, name.as_bytes()).unwrap().node;
    let tree = merged(&[&[File("a")], &[Hard("b", "a"), Hard("c", "b")]], &["a", "b", "c"]);
    assert!(node(&tree, "a") == node(&tree, "b") && node(&tree, "b") == node(&tree, "c"));
    assert_eq!(tree.node(node(&tree, "a")).links, 3);
    let tree = merged(&[&[File("a"), Hard("b", "a")], &[File("b")]], &["a", "b"]);
    assert_ne!(node(&tree, "a"), node(&tree, "b"));
    let tree = merged(&[&[File("a"), Hard("b", "a")], &[Hide("a")]], &["b"]);
    assert_eq!(tree.node(node(&tree, "b")).links, 1);
    let tree = merged(&[&[Link("s", "x"), Hard("t", "s")]], &["s>x", "t>x"]);
    assert_eq!(node(&tree, "s"), node(&tree, "t"), "the symlink itself is linked");
    merged(&[&[File("d/a"), Link("l", "d"), Hard("h", "l/a")]], &["d/", "d/a", "h", "l>d"]);
    merged(&[&[Device("n"), Hard("m", "n")]], &["m#", "n#"]);
}

#[test]
fn what_cannot_be_applied_is_an_error() {
    let error = |layers: &[&[Says<'_>]]| merge(layers).unwrap_err();
    assert!(matches!(error(&[&[File("f"), File("f/g")]]), MergeError::NotADirectory { layer: 1, .. }));
    assert!(matches!(error(&[&[], &[Link("l", "l"), File("l/g")]]), MergeError::TooManySymlinks { layer: 2, .. }));
    assert!(matches!(error(&[&[Hard("h", "missing")]]), MergeError::MissingLinkTarget { .. }));
    assert!(matches!(error(&[&[File("h"), Hard("h", "h")]]), MergeError::MissingLinkTarget { .. }));
    assert!(matches!(error(&[&[Dir("d", 0), Hard("h", "d")]]), MergeError::LinkToDirectory { .. }));
    assert!(matches!(error(&[&[Hard("h", "")]]), MergeError::LinkToDirectory { .. }));
    assert!(matches!(error(&[&[File("d/f"), Hard("d", "d/f")]]), MergeError::MissingLinkTarget { .. }));
    let long = "n".repeat(256);
    assert!(matches!(error(&[&[Link("l", &long), File("l/g")]]), MergeError::BadName { .. }));
    // Missing targets and files in the way do not matter to whiteouts.
    merged(&[&[File("f")], &[Hide("f/g"), Opaque("f/g")]], &["f"]);
}

#[test]
fn limits_and_depth_are_kept() {
    let packs = [pack(&[File("a"), File("b"), File("c")])];
    let merge = |limits: Limits| Tree::merge(&packs, &limits);
    let limits = Limits::default();
    assert!(merge(Limits { max_entries: 4, ..limits }).is_ok());
    assert!(matches!(merge(Limits { max_entries: 3, ..limits }), Err(MergeError::Limit { what: "files", max: 3 })));
    assert!(merge(Limits { max_name_bytes: 3, ..limits }).is_ok());
    assert!(matches!(merge(Limits { max_name_bytes: 2, ..limits }), Err(MergeError::Limit { .. })));
    assert!(matches!(merge(Limits { max_layers: 0, ..limits }), Err(MergeError::Limit { what: "layers", .. })));

    let deep = vec!["d"; 1500].join("/");
    let result = super::tests::merge(&[&[Link("l", &deep), File(&format!("l/{deep}"))]]);
    assert!(matches!(result, Err(MergeError::TooDeep { .. })));
}

#[test]
fn symlinks_that_blow_up_paths_are_given_up() {
    // Each entry leads through a chain of symlinks whose targets pile up.
    let target = "./".repeat(2000);
    let names: Vec<_> = (0..200).map(|i| format!("l{i}")).collect();
    let targets: Vec<_> = (1..=200).map(|i| format!("l{i}/{target}")).collect();
    let mut says: Vec<_> = names.iter().zip(&targets).map(|(name, target)| Link(name, target)).collect();
    let victims: Vec<_> = (0..100).map(|i| format!("l0/{i}/x")).collect();
    says.extend(victims.iter().map(|path| File(path)));
    assert!(matches!(merge(&[&says]), Err(MergeError::TooMuchWork { .. })));
}

#[test]
fn removed_names_and_inodes_are_not_counted_any_more() {
    let limits = Limits { max_entries: 12, max_name_bytes: 40, ..Limits::default() };
    let layer: &[Says<'_>] = &[Hide("dir"), File("dir/some"), File("dir/other"), Link("dir/link", "target")];
    let packs: Vec<_> = (0..20).map(|_| pack(layer)).collect();
    let tree = Tree::merge(&packs, &limits).unwrap();
    assert_eq!((tree.inode_count(), tree.name_bytes), (5, 3 + 4 + 5 + 4 + 6));
    assert!(tree.nodes.len() <= 12);
}

#[test]
fn lookups_lead_through_symlinks_inside_the_root() {
    let says: &[Says<'_>] = &[
        File("usr/bin/dash"),
        Link("bin", "usr/bin"),
        Link("usr/bin/sh", "/../bin/dash"),
        Link("dangling", "no"),
        Device("dev/null"),
    ];
    let tree = merge(&[says]).unwrap();
    assert_eq!(tree.kind(b"/bin/sh"), Some(FileKind::Symlink));
    assert_eq!(tree.kind_followed(b"bin/sh"), Some(FileKind::File));
    assert_eq!(tree.kind(b"bin"), Some(FileKind::Symlink));
    assert_eq!(tree.kind(b""), Some(FileKind::Directory));
    assert!(tree.contains(b"dangling") && tree.kind_followed(b"dangling").is_none());
    assert!(!tree.contains(b"dev/null") && tree.contains(b"dev") && !tree.contains(b"bin/dash/x"));
    assert_eq!(tree.device_count(), 1);
    assert_eq!(tree.machine(), None);
}

#[test]
fn additions_keep_or_replace() {
    use IfExists::{Keep, Replace};
    let says: &[Says<'_>] =
        &[File("file"), Dir("dir", 0o700), File("dir/a"), Link("link", "dir"), Link("loop", "loop")];
    let mut tree = merge(&[says]).unwrap();
    assert!(!tree.add_directory(b"dir", 0o755, Keep).unwrap());
    assert!(!tree.add_file(b"link", 0o644, b"x".to_vec(), Keep).unwrap());
    assert!(!tree.add_directory(b"file/below", 0o755, Keep).unwrap());
    assert!(!tree.add_directory(b"loop/below", 0o755, Keep).unwrap());
    assert!(tree.add_directory(b"file/below", 0o755, Replace).is_err());
    assert!(tree.add_directory(b"loop/below", 0o755, Replace).is_err());
    assert!(tree.additions.is_empty());
    assert!(tree.add_directory(b"dir", 0o755, Replace).unwrap(), "keeps its entries");
    assert!(tree.add_file(b"/link/new", 0o600, b"x".to_vec(), Keep).unwrap(), "through the symlink");
    assert!(tree.add_file(b"made/up/file", 0o644, Vec::new(), Keep).unwrap());
    assert!(tree.add_symlink(b"loop", b"target", Replace).unwrap());
    assert!(tree.add_symlink(b"sym", b"", Replace).is_err());
    assert!(tree.add_file(b"", 0o644, Vec::new(), Replace).is_err());
    assert!(!tree.add_directory(b"/", 0o700, Keep).unwrap());
    let expected = ["dir/", "dir/a", "dir/new", "file", "link>dir", "loop>target", "made/", "made/up/", "made/up/file"];
    assert_eq!(paths(&tree), expected);
    assert!(tree.add_directory(b"link", 0o755, Replace).unwrap());
    assert_eq!(tree.kind(b"link"), Some(FileKind::Directory));
    assert_eq!(tree.node(tree.child(ROOT, b"dir").unwrap().node).mode, 0o755);
}
