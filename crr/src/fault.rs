//! Faults: the tests have crr behave as if the kernel or the world were otherwise.

/// Whether a fault is asked for: `CRR_FAULT` names some, separated by commas.
#[must_use]
pub(crate) fn is_on(name: &str) -> bool {
    std::env::var("CRR_FAULT").is_ok_and(|faults| faults.split(',').any(|fault| fault == name))
}
