//! `/proc/PID/limits`: unlike prlimit(2) it answers for tasks of other users too.

use super::{Malformed, decimal};

/// Soft and hard limits in the order of `RLIMIT_*`, `u64::MAX` for none.
///
/// # Errors
/// [`Malformed`] when there are not 16 valid lines.
pub fn parse(text: &[u8]) -> Result<Vec<(u64, u64)>, Malformed> {
    // "%-25s %-20s %-20s %-10s\n" of proc_pid_limits() in fs/proc/base.c, in the order of the numbers.
    const SOFT: usize = 26;
    const HARD: usize = 47;
    const END: usize = 67;
    const COUNT: usize = 16;
    let value = |line: &[u8], from, to| match line.get(from..to).map(<[u8]>::trim_ascii) {
        Some(b"unlimited") => Some(u64::MAX),
        Some(number) => decimal(number),
        None => None,
    };
    let limits: Option<Vec<_>> = text
        .split(|&b| b == b'\n')
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(|line| Some((value(line, SOFT, HARD)?, value(line, HARD, END)?)))
        .collect();
    limits
        .filter(|limits| limits.len() == COUNT)
        .ok_or(Malformed { file: "limits", field: "set of 16 limits" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96365                processes 
Max open files            20000                20000                files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    0                    
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn captured_text() {
        let limits = parse(CAPTURED.as_bytes()).unwrap();
        assert_eq!(limits[3], (8_388_608, u64::MAX));
        assert_eq!(limits[13], (0, 0));
        assert_eq!(limits[15], (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_missing_line_is_an_error() {
        let cut = CAPTURED.rfind("Max realtime timeout").unwrap();
        assert!(parse(&CAPTURED.as_bytes()[..cut]).is_err());
    }
}
