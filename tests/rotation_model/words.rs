//! A history in words.

use stateright::Path;

use crate::checker::Action;
use crate::protection::Protection;
use crate::run::{Phase, Verdict};
use crate::scenario::{Procedure, Scenario};
use crate::world::{Happening, World};

/// One line for each step.
pub fn tell(path: Path<World, Action>, scenario: &Scenario) -> Vec<String> {
    let steps = path.into_vec();
    let after = steps.iter().skip(1).map(|(world, _)| world);
    let taken = steps.iter().filter_map(|(world, action)| action.map(|action| (world, action)));
    taken.zip(after).map(|((before, action), after)| words(before, action, after, scenario)).collect()
}

fn words(before: &World, action: Action, after: &World, scenario: &Scenario) -> String {
    match action {
        Action::Happens(happening) => happens(happening, before, after),
        Action::Step(run, through) if scenario.procedure == Procedure::RotateKeys => {
            format!("{} {}.", name(run, scenario), step(before, run, through, after, scenario))
        }
        Action::Step(run, through) => simpler(before, run, through, after, scenario),
        Action::Crash(run) => format!("{} is killed.", name(run, scenario)),
        Action::Stall(run) => format!("{} is stopped for longer than its Lease lasts.", name(run, scenario)),
        Action::Resume(run) => format!("{} is resumed.", name(run, scenario)),
        Action::Disable(_) => "The operator disables what the verdict names.".into(),
    }
}

fn name(run: usize, scenario: &Scenario) -> String {
    if scenario.runs == 1 { "The run".into() } else { format!("Run {}", run + 1) }
}

fn happens(happening: Happening, before: &World, after: &World) -> String {
    let server = |at: usize| format!("API server {}", at + 1);
    match happening {
        Happening::Rotation => format!("Somebody makes {} active.", after.active),
        Happening::Rollback => format!("Somebody makes {} active once more.", after.active),
        Happening::Refresh(at) => format!("Plugin {} adopts {}.", at + 1, after.servers[at].plugin),
        Happening::Adopt(at) => format!("{} adopts {}.", server(at), after.servers[at].seed),
        Happening::Write(at, value) => {
            let key = after.values[value].key;
            format!("A client writes value {} through {}, which stores it under {key}.", value + 1, server(at))
        }
        Happening::Send(at, value) => {
            format!("{} encrypts value {} under {}.", server(at), value + 1, before.servers[at].writes())
        }
        Happening::Land(at) => format!("What {} encrypted reaches etcd.", server(at)),
        Happening::Stop(at) => format!("{} stops.", server(at)),
        Happening::Start(at) => format!("{} starts.", server(at)),
        Happening::RestartPlugin(at) => format!("Plugin {} restarts with {}.", at + 1, after.servers[at].plugin),
        Happening::Reload(at) => format!("{} loads its former configuration.", server(at)),
        Happening::ReloadBack(at) => format!("{} loads its present configuration.", server(at)),
        Happening::Join(at) => format!("{} joins.", server(at)),
        Happening::Restore(etcd) => format!("etcd {} is restored from a snapshot.", etcd + 1),
        Happening::Compact(etcd) => format!("etcd {} is compacted.", etcd + 1),
    }
}

/// What a step of our protocol did, told by what it changed.
fn step(before: &World, run: usize, through: Option<usize>, after: &World, scenario: &Scenario) -> String {
    let (was, is) = (&before.runs[run], &after.runs[run]);
    let next = was.done.complement().first().unwrap_or_default();
    if was.lapsed && scenario.has(Protection::StandsStill) {
        let goes_on =
            if is.has_ended() { "another run has begun, and pauses" } else { "no other run has begun, and goes on" };
        return format!("finds its Lease lapsed: {goes_on}");
    }
    let target = is.target.map_or_else(|| "no target".into(), |target| target.to_string());
    match was.phase {
        Phase::Start => "begins".into(),
        Phase::Survey => "notes the keys that are in use".into(),
        Phase::Rotate if before.active != after.active => format!("makes {} active", after.active),
        Phase::Rotate => format!("sees that {} is active", after.active),
        Phase::Adopt if is.proved != was.proved => {
            let server = is.proved.without(was.proved).first().unwrap_or_default();
            format!("sees API server {} store under {target}, which it takes for the target", server + 1)
        }
        Phase::Adopt if is.phase == Phase::Ended(Verdict::NotYes) && is.proved == was.proved => {
            "pauses, since another rotation began".into()
        }
        Phase::Adopt if is.phase == Phase::Ended(Verdict::NotYes) => {
            "sees that an API server cannot read what another one stores, and gives up".into()
        }
        Phase::Adopt => "knows of no other API server".into(),
        Phase::Drain => "waits until earlier requests have ended".into(),
        Phase::TryReading => "tries reading everything through every API server".into(),
        Phase::Rewrite => rewritten(before, next, through, after),
        Phase::Search | Phase::SearchAgain if is.phase == Phase::Adopt => "finds leftovers and begins again".into(),
        Phase::Search => format!("searches etcd {} and finds nothing left", next + 1),
        Phase::SearchAgain => format!("searches etcd {} again and finds nothing left", next + 1),
        Phase::Settle if is.compacted == was.compacted => "waits for a while".into(),
        Phase::Settle => "waits until old revisions are compacted".into(),
        Phase::Snapshot if before.snapshot == after.snapshot => "has a snapshot".into(),
        Phase::Snapshot => "has a snapshot taken".into(),
        Phase::Conclude if is.phase == Phase::Snapshot => "finds a former version in the snapshot".into(),
        Phase::Conclude if is.phase == Phase::Adopt => "finds its proof void and begins again".into(),
        Phase::Conclude if is.says_yes() => format!("says Yes: {} may be disabled", is.named(scenario)),
        Phase::Conclude | Phase::Ended(_) => "does not say Yes".into(),
    }
}

fn rewritten(before: &World, value: usize, through: Option<usize>, after: &World) -> String {
    let (was, is) = (before.values[value].key, after.values[value].key);
    let through = through.map(|server| format!(" through API server {}", server + 1)).unwrap_or_default();
    if was == is {
        format!("sends value {}{through}, which stays under {is}", value + 1)
    } else {
        format!("sends value {}{through}, which is now stored under {is}", value + 1)
    }
}

fn simpler(before: &World, run: usize, through: Option<usize>, after: &World, scenario: &Scenario) -> String {
    if before.runs[run].phase == Phase::Start {
        let begins = scenario.procedure == Procedure::ReplaceLoop;
        return if begins { "The loop begins." } else { "The migration begins." }.into();
    }
    if after.runs[run].has_ended() {
        return "All requests have succeeded; the operator disables version 1.".into();
    }
    let value = before.runs[run].done.complement().first().unwrap_or_default();
    format!("It {}.", rewritten(before, value, Some(through.unwrap_or(0)), after))
}
