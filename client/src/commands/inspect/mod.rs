//! `inspect IMAGE`: shows what an image says about itself, without running
//! anything of it.

mod files;
mod metadata;

use std::fmt::Write as _;

use sctl_sif::inspect::{App, Attributes, InspectMetadata};

use crate::{
    cli::{Settings, Task},
    failure::Failure,
    output,
};

/// Which parts are shown, in the order in which texts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Parts {
    list_apps: bool,
    deffile: bool,
    runscript: bool,
    startscript: bool,
    test: bool,
    helpfile: bool,
    environment: bool,
    labels: bool,
}

impl Parts {
    fn of(settings: &Settings) -> Self {
        if settings.switch("all") {
            return Self {
                list_apps: true,
                deffile: true,
                runscript: true,
                startscript: true,
                test: true,
                helpfile: true,
                environment: true,
                labels: true,
            };
        }
        let mut parts = Self {
            list_apps: settings.switch("list-apps"),
            deffile: settings.switch("deffile"),
            runscript: settings.switch("runscript"),
            startscript: settings.switch("startscript"),
            test: settings.switch("test"),
            helpfile: settings.switch("helpfile"),
            environment: settings.switch("environment"),
            labels: settings.switch("labels"),
        };
        parts.labels |= parts == Self::default();
        parts
    }
}

/// Shows the parts that were asked for.
///
/// # Errors
/// An image that cannot be read, an app that it does not have.
pub fn inspect(task: &Task) -> Result<(), Failure> {
    let path = std::path::Path::new(&task.args[0]);
    let attributes = metadata::read(path)?;
    let settings = &task.settings;
    let parts = Parts::of(settings);
    let app = settings.text("app")?;
    if let Some(name) = app
        && !attributes.apps.contains_key(name)
    {
        return Err(Failure::new(format!("Could not locate the container application: {name}")));
    }
    if settings.switch("json") || settings.switch("all") {
        let shown = select(&attributes, parts, app);
        return output::print(&format!("{}\n", InspectMetadata::new(shown).to_json_pretty()));
    }
    output::print(&text(&attributes, parts, app))
}

/// Only the parts asked for, of the image or of one app.
fn select(all: &Attributes, parts: Parts, app: Option<&str>) -> Attributes {
    let mut shown = Attributes::default();
    if let Some(name) = app {
        if let Some(app) = all.apps.get(name) {
            shown.apps.insert(name.to_owned(), select_app(app, parts));
        }
        return shown;
    }
    if parts.list_apps {
        // `--all` shows the apps with everything, `--list-apps` their names.
        let everything = parts.runscript && parts.labels && parts.environment;
        shown.apps = if everything {
            all.apps.clone()
        } else {
            all.apps.keys().map(|name| (name.clone(), App::default())).collect()
        };
    }
    let text = |wanted: bool, text: &String| if wanted { text.clone() } else { String::new() };
    shown.deffile = text(parts.deffile, &all.deffile);
    shown.runscript = text(parts.runscript, &all.runscript);
    shown.startscript = text(parts.startscript, &all.startscript);
    shown.test = text(parts.test, &all.test);
    shown.helpfile = text(parts.helpfile, &all.helpfile);
    if parts.environment {
        shown.environment = all.environment.clone();
    }
    if parts.labels {
        shown.labels = all.labels.clone();
    }
    shown
}

fn select_app(all: &App, parts: Parts) -> App {
    let text = |wanted: bool, text: &String| if wanted { text.clone() } else { String::new() };
    App {
        environment: if parts.environment { all.environment.clone() } else { Default::default() },
        labels: if parts.labels { all.labels.clone() } else { Default::default() },
        runscript: text(parts.runscript, &all.runscript),
        startscript: text(parts.startscript, &all.startscript),
        test: text(parts.test, &all.test),
        helpfile: text(parts.helpfile, &all.helpfile),
    }
}

/// The parts as text for people.
fn text(all: &Attributes, parts: Parts, app: Option<&str>) -> String {
    let mut out = String::new();
    if parts.list_apps && app.is_none() {
        all.apps.keys().for_each(|name| out.push_str(&format!("{name}\n")));
    }
    let shown = select(all, Parts { list_apps: false, ..parts }, app);
    let shown = match app.and_then(|name| shown.apps.get(name)) {
        Some(app) => Attributes {
            environment: app.environment.clone(),
            labels: app.labels.clone(),
            runscript: app.runscript.clone(),
            startscript: app.startscript.clone(),
            test: app.test.clone(),
            helpfile: app.helpfile.clone(),
            ..Attributes::default()
        },
        None => shown,
    };
    for part in [&shown.deffile, &shown.runscript, &shown.startscript, &shown.test, &shown.helpfile] {
        if !part.is_empty() {
            out.push_str(part.trim_end_matches('\n'));
            out.push('\n');
        }
    }
    for (path, script) in &shown.environment {
        write!(out, "=== {path} ===\n{}\n\n", script.trim_end_matches('\n')).unwrap_or_default();
    }
    for (key, value) in &shown.labels {
        writeln!(out, "{key}: {value}").unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let app = App { runscript: "app run".to_owned(), labels: map(&[("x", "1")]), ..App::default() };
        Attributes {
            apps: [("foo".to_owned(), app)].into(),
            environment: map(&[("/.singularity.d/env/90-environment.sh", "export A=1")]),
            labels: map(&[("b", "2"), ("a", "1")]),
            runscript: "#!/bin/sh\nexec x".to_owned(),
            deffile: "bootstrap: docker\nfrom: x".to_owned(),
            ..Attributes::default()
        }
    }

    #[test]
    fn texts_come_in_the_known_order() {
        let all = attributes();
        let labels = Parts { labels: true, ..Parts::default() };
        assert_eq!(text(&all, labels, None), "a: 1\nb: 2\n");
        let several =
            Parts { labels: true, runscript: true, deffile: true, environment: true, list_apps: true, ..labels };
        assert_eq!(
            text(&all, several, None),
            "foo\nbootstrap: docker\nfrom: x\n#!/bin/sh\nexec x\n\
             === /.singularity.d/env/90-environment.sh ===\nexport A=1\n\na: 1\nb: 2\n"
        );
        assert_eq!(text(&all, Parts { runscript: true, ..Parts::default() }, Some("foo")), "app run\n");
        assert_eq!(text(&all, Parts { helpfile: true, ..Parts::default() }, None), "");
    }

    #[test]
    fn json_has_only_what_was_asked_for() {
        let all = attributes();
        let json = |parts, app| InspectMetadata::new(select(&all, parts, app)).to_json();
        assert_eq!(
            json(Parts { labels: true, ..Parts::default() }, None),
            r#"{"data":{"attributes":{"labels":{"a":"1","b":"2"}}},"type":"container"}"#
        );
        assert_eq!(
            json(Parts { list_apps: true, ..Parts::default() }, None),
            r#"{"data":{"attributes":{"apps":{"foo":{}}}},"type":"container"}"#
        );
        assert_eq!(
            json(Parts { runscript: true, ..Parts::default() }, Some("foo")),
            r#"{"data":{"attributes":{"apps":{"foo":{"runscript":"app run"}}}},"type":"container"}"#
        );
    }
}
