//! Benchmarks: ratios of things measured in turns within one run.
//!
//! `tests/bench/run.sh` builds and runs them. No test asserts a time; these
//! print figures, the targets beside them, and say which are missed.

mod run;
mod stage;
mod start;

fn main() {
    // `cargo bench` passes `--bench`; what remains names benchmarks.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|choice| choice == name);
    if !sctl_tests::programs::have_root("benchmarks") {
        std::process::exit(1);
    }
    let mut report = run::Report::default();
    if wanted("pull") {
        run::pull(&mut report);
    }
    if wanted("second") {
        run::second_image(&mut report);
    }
    if wanted("memory") {
        run::memory(&mut report);
    }
    if wanted("exec") {
        run::exec(&mut report);
    }
    if wanted("start") {
        start::start(&mut report);
    }
    if wanted("read") {
        run::read(&mut report);
    }
    report.print();
}
