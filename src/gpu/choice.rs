//! Which of several kernels an operation uses for a pass: the first that its table offers, unless
//! one was asked for.

use std::cell::RefCell;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Choices {
    /// Kernels asked for, by pass.
    forced: RefCell<HashMap<&'static str, &'static str>>,
    /// Kernels that passes have offered so far.
    offered: RefCell<HashMap<&'static str, Vec<&'static str>>>,
    /// Kernel that each pass used last.
    chosen: RefCell<HashMap<&'static str, &'static str>>,
}

impl Choices {
    pub fn force(&self, pass: &'static str, kernel: Option<&'static str>) {
        match kernel {
            Some(kernel) => self.forced.borrow_mut().insert(pass, kernel),
            None => self.forced.borrow_mut().remove(pass),
        };
    }

    pub fn choose<T: Copy>(&self, pass: &'static str, candidates: &[(&'static str, T)]) -> T {
        let mut offered = self.offered.borrow_mut();
        let names = offered.entry(pass).or_default();
        for (name, _) in candidates {
            if !names.contains(name) {
                names.push(name);
            }
        }
        let forced = self.forced.borrow().get(pass).copied();
        let &(name, kernel) = candidates
            .iter()
            .find(|(name, _)| Some(*name) == forced)
            .or(candidates.first())
            .expect("a pass offers at least one kernel");
        self.chosen.borrow_mut().insert(pass, name);
        kernel
    }

    pub fn forget(&self) {
        self.offered.borrow_mut().clear();
        self.chosen.borrow_mut().clear();
    }

    pub fn chosen(&self, pass: &'static str) -> Option<&'static str> {
        self.chosen.borrow().get(pass).copied()
    }

    pub fn offered(&self, pass: &'static str) -> Vec<&'static str> {
        self.offered.borrow().get(pass).cloned().unwrap_or_default()
    }
}
