//! Tricky images: every form that a layer may take, small.
//!
//! Each is unpacked by umoci as root and converted by sctl; the two trees must
//! be the same. An image that only umoci refuses or reads otherwise does not
//! belong here but into a test of its own.

use crate::layer::{BlobCompression, Entry, Layer, Style};

/// A named image of the corpus: its layers, bottom-up.
pub struct Case {
    /// Lower case, usable as a repository name.
    pub name: &'static str,
    /// The layers.
    pub layers: Vec<Layer>,
}

fn base() -> Vec<Entry> {
    vec![
        Entry::dir("a"),
        Entry::dir("a/b"),
        Entry::file("a/b/one", "one"),
        Entry::file("a/b/two", "two"),
        Entry::file("a/three", "three"),
        Entry::symlink("link", "a/b"),
        Entry::dir("z"),
    ]
}

/// Bytes that no compressor makes smaller, the same ones for the same seed.
pub fn pseudo_random(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64: incompressible enough, and the same everywhere.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A gzip'ed single layer.
fn one(name: &'static str, entries: Vec<Entry>) -> Case {
    Case { name, layers: vec![Layer::new(&entries)] }
}

/// `base()` below, `upper` above.
fn over(name: &'static str, upper: Vec<Entry>) -> Case {
    Case { name, layers: vec![Layer::new(&base()), Layer::new(&upper)] }
}

fn many(name: &'static str, layers: Vec<Vec<Entry>>) -> Case {
    Case { name, layers: layers.iter().map(|entries| Layer::new(entries)).collect() }
}

/// All images of the corpus.
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<Case> {
    let long = "n".repeat(255);
    let deep = vec!["d".repeat(60); 8].join("/");
    let block = 128 << 10;
    let stored = |compression| vec![Layer::new(&base()).stored(compression)];
    vec![
        one("plain", base()),
        Case { name: "blob-plain-tar", layers: stored(BlobCompression::None) },
        Case { name: "blob-gzip-members", layers: stored(BlobCompression::GzipMembers) },
        Case { name: "blob-zstd", layers: stored(BlobCompression::Zstd) },
        Case { name: "blob-zstd-frames", layers: stored(BlobCompression::ZstdFrames) },
        many("empty-layer", vec![vec![], base(), vec![]]),
        one("only-empty-layer", vec![]),
        one("root-entry", vec![Entry::dir("./").mode(0o711).owner(3, 4), Entry::file("./x", "x")]),
        over("root-entry-above", vec![Entry::dir("./").mode(0o700)]),
        // Names.
        one("dot-names", vec![Entry::dir("./a"), Entry::file("./a/./x", "x"), Entry::file("a//y", "y")]),
        one("absolute-names", vec![Entry::dir("/a"), Entry::file("/a/x", "x"), Entry::hardlink("/a/y", "/a/x")]),
        one("dotdot-names", vec![Entry::dir("a"), Entry::file("a/../b", "b"), Entry::file("../../c", "c")]),
        one("name-255", vec![Entry::file(&long, "x"), Entry::dir("d"), Entry::file(format!("d/{long}"), "y")]),
        one("name-255-gnu", vec![Entry::file(&long, "x").style(Style::Gnu)]),
        one("path-deep", vec![Entry::file(format!("{deep}/x"), "x")]),
        one("path-deep-gnu", vec![Entry::file(format!("{deep}/x"), "x").style(Style::Gnu)]),
        one(
            "path-ustar-prefix",
            vec![Entry::file(format!("{}/{}/x", "p".repeat(90), "q".repeat(60)), "x").style(Style::Ustar)],
        ),
        one(
            "names-not-utf8",
            vec![
                Entry::file(b"\xff\xfe\x80", "x"),
                Entry::dir(b"d\xe9"),
                Entry::file(b"d\xe9/\xc3\x28", "y"),
                Entry::symlink(b"l\xff", b"\xff\xfe\x80"),
            ],
        ),
        one("names-newline", vec![Entry::file("a\nb", "x"), Entry::file("tab\there", "y"), Entry::file(" ", "z")]),
        one(
            "names-whiteout-like",
            vec![Entry::file("wh.x", "x"), Entry::file("a.wh.b", "y"), Entry::file(".wha", "z")],
        ),
        one("names-shell", vec![Entry::file("$(id)`id`;'\"\\", "x"), Entry::file("-rf", "y"), Entry::file("*", "z")]),
        one(
            "name-order",
            (1..=255u8).filter(|b| *b != b'/' && *b != b'.').map(|b| Entry::file([b'n', b], [b])).collect(),
        ),
        // Parents.
        one("parents-missing", vec![Entry::file("p/q/r/x", "x"), Entry::dir("p/q").mode(0o700).owner(5, 6)]),
        one("parent-after-child", vec![Entry::file("p/x", "x"), Entry::dir("p").mode(0o750)]),
        over("parent-is-lower-symlink", vec![Entry::file("link/new", "new"), Entry::file("link/one", "changed")]),
        over("parent-is-absolute-symlink", vec![Entry::symlink("abs", "/a/b"), Entry::file("abs/x", "x")]),
        over("parent-is-escaping-symlink", vec![Entry::symlink("esc", "../../../../a"), Entry::file("esc/x", "x")]),
        over("parent-is-dangling-symlink", vec![Entry::symlink("dang", "nowhere/here"), Entry::file("dang/x", "x")]),
        one(
            "parent-symlink-chain",
            vec![
                Entry::dir("real"),
                Entry::symlink("s1", "s2"),
                Entry::symlink("s2", "/s3"),
                Entry::symlink("s3", "./real/../real"),
                Entry::file("s1/x", "x"),
            ],
        ),
        // Types.
        one(
            "types",
            vec![
                Entry::fifo("fifo").mode(0o620).owner(1, 2),
                Entry::symlink("s", "target"),
                Entry::symlink("abs", "/etc/passwd"),
                Entry::symlink("long", "t".repeat(1000)),
                Entry::symlink("weird", b"\xff\n"),
                Entry::file("empty", ""),
                Entry::raw("v7", 0, "old regular"),
            ],
        ),
        one("devices-left-out", vec![Entry::char_device("null", 1, 3), Entry::file("x", "x")]),
        one(
            "modes",
            vec![
                Entry::file("suid", "x").mode(0o4755),
                Entry::file("sgid", "x").mode(0o2755),
                Entry::dir("sticky").mode(0o1777),
                Entry::dir("sgid-dir").mode(0o2775),
                Entry::file("none", "x").mode(0),
                Entry::dir("dir-none").mode(0),
                Entry::file("dir-none/x", "x").mode(0o600),
                Entry::file("all", "x").mode(0o7777),
            ],
        ),
        one(
            "owners",
            vec![
                Entry::file("small", "x").owner(1, 2),
                Entry::file("big", "x").owner(100_000, 200_000),
                Entry::file("pax", "x").owner(4_000_000, 3_000_000),
                Entry::file("gnu", "x").owner(4_000_000_000, 3_000_000).style(Style::Gnu),
                Entry::symlink("link", "x").owner(77, 78),
                Entry::dir("dir").owner(65_534, 65_535),
            ],
        ),
        one(
            "times",
            vec![
                Entry::file("zero", "x").mtime(0),
                Entry::file("y2038", "x").mtime(2_147_483_648),
                Entry::file("max", "x").mtime(4_294_967_295),
                Entry::file("fraction", "x").pax("mtime", "1500000000.987654321"),
                Entry::symlink("link", "x").mtime(12345),
                Entry::fifo("fifo").mtime(54321),
            ],
        ),
        one(
            "times-outside",
            vec![
                Entry::file("old", "x").mtime(-5).style(Style::Gnu),
                Entry::file("far", "x").mtime((1 << 33) + 5).style(Style::Gnu),
            ],
        ),
        // Extended attributes.
        one(
            "xattrs",
            vec![
                Entry::file("user", "x").xattr("user.note", "hello").xattr("user.empty", ""),
                Entry::file("binary", "x").xattr("user.bin", [0u8, 255, 10, 61]),
                Entry::file("cap", "x").xattr(
                    "security.capability",
                    b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
                ),
                Entry::dir("dir").xattr("user.d", "d"),
                Entry::file("same1", "1").xattr("user.same", "same"),
                Entry::file("same2", "2").xattr("user.same", "same"),
                Entry::file("large", "x").xattr("user.large", vec![b'L'; 3000]),
            ],
        ),
        over("xattr-replaced", vec![Entry::file("a/three", "x").xattr("user.new", "1")]),
        // Contents.
        one(
            "sizes",
            [0, 1, block - 1, block, block + 1, 2 * block, 3 * block + 7]
                .iter()
                .map(|&len| Entry::file(format!("f{len}"), pseudo_random(len, len as u64 + 1)))
                .collect(),
        ),
        one(
            "zeros",
            vec![
                Entry::file("hole", vec![0u8; 5 * block + 5]),
                Entry::file("small-hole", vec![0u8; 100]),
                Entry::file("middle", [pseudo_random(block, 9), vec![0; 2 * block], pseudo_random(block, 8)].concat()),
                Entry::file("end", [pseudo_random(block, 7), vec![0; block + 100]].concat()),
            ],
        ),
        one(
            "duplicates-inside",
            vec![
                Entry::file("one", pseudo_random(5000, 1)),
                Entry::file("same", pseudo_random(5000, 1)),
                Entry::file("big", pseudo_random(3 * block + 1, 2)),
                Entry::file("big-same", pseudo_random(3 * block + 1, 2)),
            ],
        ),
        many(
            "duplicates-across",
            vec![
                vec![Entry::file("one", pseudo_random(5000, 1)), Entry::file("big", pseudo_random(3 * block, 2))],
                vec![Entry::file("two", pseudo_random(5000, 1)), Entry::file("big2", pseudo_random(3 * block, 2))],
                vec![Entry::whiteout("one"), Entry::whiteout("big")],
            ],
        ),
        one("many-small", (0..3000).map(|n| Entry::file(format!("d{}/f{n}", n % 7), format!("content {n}"))).collect()),
        one("wide-directory", (0..5000).map(|n| Entry::file(format!("file-with-a-longer-name-{n:06}"), "")).collect()),
        one("entry-twice", vec![Entry::file("x", "first").mode(0o600), Entry::file("x", "second").mode(0o755)]),
        one("directory-twice", vec![Entry::dir("d").mode(0o700), Entry::file("d/x", "x"), Entry::dir("d").mode(0o755)]),
        one("file-then-directory", vec![Entry::file("x", "x"), Entry::dir("x"), Entry::file("x/y", "y")]),
        one("directory-then-file", vec![Entry::dir("x"), Entry::file("x/y", "y"), Entry::file("x", "x")]),
        // Hard links.
        one(
            "hardlinks",
            vec![
                Entry::file("x", "x").owner(7, 8),
                Entry::hardlink("y", "x"),
                Entry::dir("d"),
                Entry::hardlink("d/z", "y"),
            ],
        ),
        over("hardlink-to-lower", vec![Entry::hardlink("hard", "a/b/one"), Entry::hardlink("a/hard", "a/b/one")]),
        over("hardlink-over-existing", vec![Entry::hardlink("a/three", "a/b/two")]),
        over("hardlink-through-symlink", vec![Entry::hardlink("hard", "link/one")]),
        one("hardlink-to-symlink", vec![Entry::symlink("s", "nowhere"), Entry::hardlink("h", "s")]),
        one("hardlink-to-fifo", vec![Entry::fifo("p"), Entry::hardlink("q", "p")]),
        many(
            "hardlink-broken-above",
            vec![
                vec![Entry::file("x", "old"), Entry::hardlink("y", "x"), Entry::hardlink("z", "x")],
                vec![Entry::file("y", "new")],
            ],
        ),
        many(
            "hardlink-name-deleted",
            vec![vec![Entry::file("x", "x"), Entry::hardlink("y", "x")], vec![Entry::whiteout("x")]],
        ),
        many(
            "hardlink-target-replaced",
            vec![
                vec![Entry::file("x", "old"), Entry::hardlink("y", "x")],
                vec![Entry::file("x", "new"), Entry::hardlink("w", "x")],
            ],
        ),
        // Whiteouts.
        over("whiteout-file", vec![Entry::whiteout("a/b/one")]),
        over("whiteout-directory", vec![Entry::whiteout("a/b")]),
        over("whiteout-symlink", vec![Entry::whiteout("link")]),
        over("whiteout-missing", vec![Entry::whiteout("a/none"), Entry::file("x", "x")]),
        over("whiteout-before-same-name", vec![Entry::whiteout("a/three"), Entry::file("a/three", "new")]),
        over("whiteout-after-same-name", vec![Entry::file("a/three", "new"), Entry::whiteout("a/three")]),
        over(
            "whiteout-directory-before-new",
            vec![Entry::whiteout("a/b"), Entry::dir("a/b"), Entry::file("a/b/new", "n")],
        ),
        over(
            "whiteout-directory-after-new",
            vec![Entry::dir("a/b"), Entry::file("a/b/new", "n"), Entry::whiteout("a/b")],
        ),
        over("whiteout-through-symlink", vec![Entry::whiteout("link/one")]),
        over("opaque-first", vec![Entry::dir("a"), Entry::opaque("a"), Entry::file("a/new", "n")]),
        over("opaque-last", vec![Entry::dir("a"), Entry::file("a/new", "n"), Entry::opaque("a")]),
        over("opaque-between", vec![Entry::file("a/n1", "1"), Entry::opaque("a"), Entry::file("a/n2", "2")]),
        over("opaque-deep", vec![Entry::dir("a"), Entry::dir("a/b"), Entry::file("a/b/new", "n"), Entry::opaque("a")]),
        over("opaque-empties", vec![Entry::dir("a"), Entry::opaque("a")]),
        many(
            "whiteout-then-again",
            vec![
                base(),
                vec![Entry::whiteout("a")],
                vec![Entry::dir("a"), Entry::file("a/back", "b")],
                vec![Entry::opaque("a")],
            ],
        ),
        many(
            "secret-deleted",
            vec![
                vec![Entry::dir("s"), Entry::file("s/keep", "keep"), Entry::file("s/secret", "s3cr3t")],
                vec![Entry::whiteout("s/secret")],
            ],
        ),
        // Replacement across layers.
        over("directory-by-file", vec![Entry::file("a", "now a file")]),
        over("directory-by-symlink", vec![Entry::symlink("a", "z")]),
        over("file-by-directory", vec![Entry::dir("a/three"), Entry::file("a/three/x", "x")]),
        over("file-by-symlink", vec![Entry::symlink("a/three", "b/one")]),
        over("symlink-by-directory", vec![Entry::dir("link"), Entry::file("link/x", "x")]),
        over("symlink-by-file", vec![Entry::file("link", "x")]),
        over("directory-attributes", vec![Entry::dir("a").mode(0o700).owner(9, 9), Entry::dir("z").mode(0o1777)]),
        over("mode-changed", vec![Entry::file("a/b/one", "one").mode(0o755)]),
        // Headers.
        one("pax-size", vec![Entry::file("x", "0123456789").pax("size", "10"), Entry::file("y", "y")]),
        one(
            "pax-path",
            vec![
                Entry::file("short", "x").pax("path", "d/from-pax"),
                Entry::symlink("s", "t").pax("linkpath", "from-pax"),
            ],
        ),
        one("pax-unknown", vec![Entry::file("x", "x").pax("VENDOR.key", "value").pax("comment", "c")]),
        one(
            "gnu-names",
            vec![Entry::symlink("s".repeat(120), "t".repeat(150)).style(Style::Gnu), Entry::file("x", "x")],
        ),
        one(
            "mixed-styles",
            vec![
                Entry::file("u", "u").style(Style::Ustar),
                Entry::file("g", "g").style(Style::Gnu),
                Entry::file("p", "p"),
            ],
        ),
        Case {
            name: "trailing-bytes",
            layers: vec![Layer::from_tar([Layer::new(&base()).tar, vec![0; 20 * 512], pseudo_random(512, 3)].concat())],
        },
    ]
}
