//! What the restart limit and a reload promise, counted from what processes did.

use std::collections::BTreeMap;

use pmr::policy::{
    Action, Event, Exit, Fact, Generation, Reason, RollKind, Rules, SlotId, Status, Verdict, Wish,
    Word,
};

/// A window that no history outlasts, in milliseconds.
const WINDOW_MS_ENDLESS: u128 = 1 << 40;

/// Counts of one history.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// Unstable exits in a row since somebody or something may have made the slot start afresh.
    unstable: BTreeMap<SlotId, u32>,
    /// The same since an instance of the slot was last stable, whatever people wished.
    unstable_ever: BTreeMap<SlotId, u32>,
    /// Instances that are being ended because their start failed.
    failed_starts: Vec<Generation>,
    /// Instances whose failed start was overtaken by a wish or a reload: their ends do not count.
    excused: Vec<Generation>,
    /// Online slots when the reload began, less those that crashed since.
    online_owed: Option<usize>,
}

type Checked = Result<(), String>;

impl Limits {
    /// Counts what a fact means for the slot whose current instance it is about.
    pub(crate) fn take_fact(&mut self, fact: &Fact, before: &Status, rules: &Rules) {
        let generation = fact.generation();
        let is_it = |slot: &&pmr::policy::SlotStatus| {
            slot.instance.as_ref().is_some_and(|it| it.generation == generation)
        };
        let Some(slot) = before.slots.iter().find(is_it) else { return };
        let failed = match fact {
            Fact::SpawnFailed { failure, .. } => !failure.transient,
            Fact::Exited { exit, .. } => {
                let word = slot.instance.as_ref().map(|instance| instance.word);
                let was_ready = word == Some(Word::Online);
                if was_ready {
                    self.online_owed = self.online_owed.map(|owed| owed.saturating_sub(1));
                }
                let lived = slot.instance.as_ref().map(|instance| instance.uptime);
                let stable = was_ready && lived >= Some(rules.restart.min_uptime);
                let asked = word == Some(Word::Draining);
                if stable {
                    self.unstable.remove(&slot.slot);
                    self.unstable_ever.remove(&slot.slot);
                    return;
                }
                let wanted = match exit {
                    Exit::Code(code) => rules.restart.stop_exit_codes.contains(code),
                    Exit::Signal { .. } | Exit::Unseen => false,
                };
                !(asked || wanted) || self.failed_starts.contains(&generation)
            }
            _ => false,
        };
        if failed {
            let counts = u32::from(!self.excused.contains(&generation));
            *self.unstable.entry(slot.slot).or_default() += counts;
            *self.unstable_ever.entry(slot.slot).or_default() += 1;
        }
    }

    /// Judges what the core said to an event.
    pub(crate) fn judge(
        &mut self,
        event: &Event,
        out: &[Action],
        [before, after]: [&Status; 2],
        rules: &Rules,
    ) -> Checked {
        let afresh =
            |roll: &Status| matches!(roll.roll, Some((RollKind::Reload | RollKind::Restart, _)));
        let wished = match event {
            Event::Wish(_, wish) => matches!(
                wish,
                Wish::Start { .. }
                    | Wish::Scale { .. }
                    | Wish::Restart { .. }
                    | Wish::Reload { .. }
                    | Wish::Reset { .. }
            ),
            Event::Tick | Event::Fact(_) => false,
        };
        if let Event::Wish(_, Wish::Start { .. } | Wish::Stop { .. } | Wish::Scale { .. }) = event {
            // Asked for by now, whatever it was ended for at first.
            self.excused.extend(&self.failed_starts);
        }
        if wished || afresh(before) || afresh(after) {
            self.unstable.clear();
        }
        for slot in before.slots.iter().chain(&after.slots) {
            let old = |it: &pmr::policy::InstanceStatus| it.uptime >= rules.restart.min_uptime;
            if slot.word == Word::Online && slot.instance.as_ref().is_some_and(old) {
                self.unstable.remove(&slot.slot);
            }
        }
        // One that is ready late is stable at once, also where it is replaced at that very moment.
        if let Event::Fact(Fact::Ready { generation }) = event {
            for slot in &before.slots {
                let late = |it: &pmr::policy::InstanceStatus| {
                    it.generation == *generation && it.uptime >= rules.restart.min_uptime
                };
                if slot.instance.as_ref().is_some_and(late) {
                    self.unstable.remove(&slot.slot);
                }
            }
        }
        for action in out {
            match action {
                // A replacement for memory has a budget of its own.
                Action::Spawn { slot, .. }
                    if after.roll == Some((RollKind::Memory, Some(*slot))) => {}
                Action::Spawn { slot, .. } => self.judge_spawn(*slot, rules)?,
                Action::Note(note) => {
                    self.judge_note(note.slot, note.generation, &note.reason, rules)?;
                    judge_hurry(&note.reason, note.slot, after)?;
                    if let Reason::RollFailed { slot, .. } = &note.reason {
                        judge_loss(event, before, *slot)?;
                        let failed = after.slots.iter().filter(|it| it.slot == *slot);
                        let failed = failed.filter_map(|slot| slot.instance.as_ref());
                        self.excused.extend(failed.map(|instance| instance.generation));
                    }
                    let online = after.online() + hurried(out);
                    self.judge_reload(&note.reason, before, online, rules)?;
                }
                Action::Signal { .. }
                | Action::Send { .. }
                | Action::Kill { .. }
                | Action::Clear { .. }
                | Action::Wire { .. }
                | Action::Adjust { .. }
                | Action::Announce(_)
                | Action::Reply { .. } => {}
            }
        }
        Ok(())
    }

    fn judge_spawn(&self, slot: SlotId, rules: &Rules) -> Checked {
        let unstable = self.unstable.get(&slot).copied().unwrap_or_default();
        let endless = rules.restart.window.as_millis() > WINDOW_MS_ENDLESS;
        if endless && unstable >= rules.restart.max_restarts {
            return Err(format!("a start in slot {slot} after {unstable} unstable exits"));
        }
        Ok(())
    }

    fn judge_note(
        &mut self,
        slot: Option<SlotId>,
        generation: Option<Generation>,
        reason: &Reason,
        rules: &Rules,
    ) -> Checked {
        use pmr::policy::EndCause;
        let (Some(slot), Some(generation)) = (slot, generation) else { return Ok(()) };
        match reason {
            Reason::Ending(EndCause::StartTimeout | EndCause::ExecFailed(_)) => {
                self.failed_starts.push(generation);
            }
            Reason::Failed { verdict: Some(Verdict::Errored), .. } => {
                let unstable = self.unstable_ever.get(&slot).copied().unwrap_or_default();
                if rules.restart.autorestart && unstable < rules.restart.max_restarts {
                    return Err(format!("slot {slot} errored after {unstable} unstable exits"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A reload ends with as many online slots as there were, less those that crashed.
    fn judge_reload(
        &mut self,
        reason: &Reason,
        before: &Status,
        online: usize,
        rules: &Rules,
    ) -> Checked {
        match reason {
            Reason::RollBegun { kind: RollKind::Reload, .. } if rules.beside => {
                self.online_owed = Some(before.online());
            }
            Reason::RollCancelled { kind: RollKind::Reload } => self.online_owed = None,
            Reason::RollDone { kind: RollKind::Reload }
            | Reason::RollFailed { kind: RollKind::Reload, .. } => {
                let owed = self.online_owed.take().unwrap_or_default();
                if online < owed {
                    return Err(format!("a reload of {owed} ends with {online} online"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// How many were stopped for their memory as soon as the reload was over.
fn hurried(out: &[Action]) -> usize {
    let reasons = out.iter().filter_map(|action| match action {
        Action::Note(note) => Some(&note.reason),
        _ => None,
    });
    reasons.filter(|reason| matches!(reason, Reason::MemoryHurry { .. })).count()
}

/// Who grows too fast is stopped first only where another slot serves.
fn judge_hurry(reason: &Reason, slot: Option<SlotId>, after: &Status) -> Checked {
    let serves = |it: &pmr::policy::SlotStatus| Some(it.slot) != slot && it.word == Word::Online;
    let alone = !after.slots.iter().any(serves);
    if alone && let Reason::MemoryHurry { .. } = reason {
        return Err("the last one that serves is stopped for its memory".to_owned());
    }
    Ok(())
}

/// That a spawn was lost with a supervisor is no reason for a roll to fail in that slot.
fn judge_loss(event: &Event, before: &Status, failed: SlotId) -> Checked {
    let Event::Fact(Fact::Lost { generation }) = event else { return Ok(()) };
    let slot = before.slots.iter().find(|slot| slot.slot == failed);
    let held = slot.into_iter().flat_map(|slot| slot.instance.iter().chain(&slot.other));
    if held.clone().any(|instance| instance.generation == *generation) {
        return Err("a roll fails since the supervisor died".to_owned());
    }
    Ok(())
}
