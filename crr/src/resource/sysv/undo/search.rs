//! Finding out what is to be undone at one semaphore, by asking again and again.

use super::operations::{HIGHEST, LOWEST, Operations};

/// What is known of a sum.
#[derive(Clone, Debug)]
pub(super) struct Search {
    pub(super) number: u16,
    least: i64,
    most: i64,
}

/// One question about a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    AtLeast(i64),
    AtMost(i64),
}

impl Question {
    pub(super) fn operations(self, number: u16, value: u16) -> Operations {
        match self {
            Self::AtLeast(least) => Operations::at_least(number, value, least),
            Self::AtMost(most) => Operations::at_most(number, value, most),
        }
    }
}

impl Search {
    pub(super) fn new(number: u16) -> Self {
        Self { number, least: LOWEST, most: HIGHEST }
    }

    /// The sum, when nothing else is left.
    pub(super) fn sum(&self) -> Option<i16> {
        i16::try_from(self.least).ok().filter(|_| self.least == self.most)
    }

    /// What to ask next. A sum is mostly 0, or as small as can be; each boundary is asked for from both sides, since only a yes is an answer.
    pub(super) fn questions(&self) -> Vec<Question> {
        let (least, most) = (self.least, self.most);
        if least < 0 && most > 0 {
            return vec![Question::AtLeast(0), Question::AtMost(0)];
        }
        let quarter = (most - least + 1) / 4;
        let small = if least >= 0 { [least + 1, least + 2] } else { [most, most - 1] };
        let mut bounds = vec![least + quarter, least + 2 * quarter, least + 3 * quarter];
        bounds.extend(small);
        bounds.retain(|&bound| (least + 1..=most).contains(&bound));
        bounds.sort_unstable();
        bounds.dedup();
        bounds.iter().flat_map(|&bound| [Question::AtLeast(bound), Question::AtMost(bound - 1)]).collect()
    }

    /// Takes a yes; whether it was new.
    pub(super) fn learn(&mut self, question: Question) -> bool {
        let before = (self.least, self.most);
        match question {
            Question::AtLeast(least) => self.least = self.least.max(least),
            Question::AtMost(most) => self.most = self.most.min(most),
        }
        (self.least, self.most) != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sum_is_found_soon() {
        let (mut longest, mut of_small) = (0, 0);
        for sum in i16::MIN..=i16::MAX {
            let mut search = Search::new(0);
            let mut rounds = 0;
            while search.sum().is_none() {
                let questions = search.questions();
                assert!((1..=10).contains(&questions.len()), "{sum}: {questions:?}");
                let mut learnt = false;
                for question in questions {
                    let yes = match question {
                        Question::AtLeast(least) => i64::from(sum) >= least,
                        Question::AtMost(most) => i64::from(sum) <= most,
                    };
                    learnt |= yes && search.learn(question);
                }
                assert!(learnt, "{sum}: {search:?}");
                rounds += 1;
            }
            assert_eq!(search.sum(), Some(sum));
            longest = longest.max(rounds);
            if sum.unsigned_abs() == 1 {
                of_small = of_small.max(rounds);
            }
        }
        assert!(longest <= 10 && of_small == 2, "{longest} rounds, {of_small} for 1");
    }
}
