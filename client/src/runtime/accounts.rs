//! `/etc/passwd` and `/etc/group` of the container: the image's own, with the
//! caller in them.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use super::identity::{Identity, parse_id};

/// The image's passwd file with the caller's record: name, full name and home
/// of a record with this uid are replaced (uid 0 keeps its name); where there
/// is none, one is added.
pub fn passwd(image: &[u8], caller: &Identity, home: &OsStr) -> Vec<u8> {
    let home = field(home.as_bytes());
    let mut text = Vec::with_capacity(image.len() + 128);
    let mut found = false;
    for line in lines(image) {
        let mut fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let ours = fields.len() == 7 && parse_id(fields[2]) == Some(caller.uid);
        let (name, gecos) = (field(&caller.name), field(&caller.gecos));
        if ours && !found {
            found = true;
            if caller.uid != 0 {
                fields[0] = &name;
            }
            fields[4] = &gecos;
            fields[5] = &home;
            text.extend(fields.join(&b':'));
        } else {
            text.extend(line);
        }
        text.push(b'\n');
    }
    if !found {
        let (name, gecos, shell) = (field(&caller.name), field(&caller.gecos), field(&caller.shell));
        let (uid, gid) = (caller.uid.to_string(), caller.gid.to_string());
        let record = [&name[..], b"x", uid.as_bytes(), gid.as_bytes(), &gecos, &home, &shell];
        text.extend(record.join(&b':'));
        text.push(b'\n');
    }
    text
}

/// The image's group file with a record for each of the caller's groups that
/// it lacks.
pub fn group(image: &[u8], caller: &Identity) -> Vec<u8> {
    let mut text = Vec::with_capacity(image.len() + 64 * caller.groups.len());
    let mut known = Vec::new();
    for line in lines(image) {
        known.extend(line.split(|&byte| byte == b':').nth(2).and_then(parse_id));
        text.extend(line);
        text.push(b'\n');
    }
    for group in caller.groups.iter().filter(|group| !known.contains(&group.gid)) {
        let gid = group.gid.to_string();
        text.extend([&field(&group.name)[..], b"x", gid.as_bytes(), &field(&caller.name)].join(&b':'));
        text.push(b'\n');
    }
    text
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// What would begin another field or record is left out.
fn field(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| !b":\n\0".contains(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::identity::{Group, Identity},
        *,
    };

    fn alice() -> Identity {
        Identity {
            uid: 1000,
            gid: 100,
            name: b"alice".to_vec(),
            gecos: b"Alice".to_vec(),
            home: "/home/alice".into(),
            shell: b"/bin/zsh".to_vec(),
            groups: vec![Group { gid: 100, name: b"users".to_vec() }, Group { gid: 5000, name: b"project".to_vec() }],
        }
    }

    #[test]
    fn a_missing_caller_is_added() {
        let text = passwd(b"root:x:0:0:root:/root:/bin/bash", &alice(), OsStr::new("/home/alice"));
        let expected = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:100:Alice:/home/alice:/bin/zsh\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn a_record_with_the_uid_keeps_gid_and_shell() {
        let text = passwd(b"node:x:1000:1000:Node:/home/node:/bin/sh\n", &alice(), OsStr::new("/work"));
        assert_eq!(String::from_utf8(text).unwrap(), "alice:x:1000:1000:Alice:/work:/bin/sh\n");
    }

    #[test]
    fn uid_zero_keeps_its_name() {
        let caller = Identity { uid: 0, ..alice() };
        let text = passwd(b"toor:x:0:0::/root:/bin/sh\n", &caller, OsStr::new("/root"));
        assert_eq!(String::from_utf8(text).unwrap(), "toor:x:0:0:Alice:/root:/bin/sh\n");
    }

    #[test]
    fn nobody_smuggles_a_record_in() {
        let caller = Identity { gecos: b"x\nevil::0:0::/:/bin/sh".to_vec(), ..alice() };
        let text = passwd(b"", &caller, OsStr::new("/home/a:b\nc"));
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(text.iter().filter(|&&byte| byte == b':').count(), 6);
    }

    #[test]
    fn groups_are_added_once() {
        let text = group(b"root:x:0:\nstaff:x:100:bob\n", &alice());
        assert_eq!(String::from_utf8(text).unwrap(), "root:x:0:\nstaff:x:100:bob\nproject:x:5000:alice\n");
    }
}
