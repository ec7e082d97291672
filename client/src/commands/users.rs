//! Users by name, in tables for administrators.

use std::collections::BTreeMap;

use sctl_sys::proc;

/// Who may use what anonymous credentials earned.
const EVERYBODY: &str = "everybody";

/// Names that have been looked up.
#[derive(Debug, Default)]
pub struct Users(BTreeMap<u32, String>);

impl Users {
    /// The name of a user; the number of one who has none.
    pub fn name(&mut self, uid: u32) -> &str {
        self.0.entry(uid).or_insert_with(|| {
            let account = proc::account(uid).ok().flatten();
            account.map_or_else(|| uid.to_string(), |account| String::from_utf8_lossy(&account.name).into_owned())
        })
    }

    /// The name of a holder of rights; none is everybody.
    pub fn holder(&mut self, uid: Option<u32>) -> String {
        uid.map_or_else(|| EVERYBODY.to_owned(), |uid| self.name(uid).to_owned())
    }

    /// Several of them, `public` being everybody.
    pub fn list(&mut self, public: bool, uids: &[u32]) -> String {
        let mut names: Vec<String> = public.then(|| EVERYBODY.to_owned()).into_iter().collect();
        names.extend(uids.iter().map(|&uid| self.name(uid).to_owned()));
        names.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_where_there_are_some() {
        let mut users = Users::default();
        assert_eq!(users.list(true, &[0, 4_000_000_000]), "everybody,root,4000000000");
        assert_eq!(users.holder(None), "everybody");
        assert_eq!(users.list(false, &[]), "");
    }
}
