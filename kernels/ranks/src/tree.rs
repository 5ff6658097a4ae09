//! Sums in a fixed order: a binary tree with gap 1, 2, 4 …, so that neighbours are added first. Whatever computed the
//! parts, their sum has the same bits.

/// Parts that are added as they come; holds one sum for each level of the tree.
///
/// ```
/// let add = |left: String, right: String| format!("({left}+{right})");
/// let mut tree = tune_ranks::tree::Tree::default();
/// ["a", "b", "c", "d", "e"].map(|part| tree.push(part.to_owned(), add));
/// assert_eq!(tree.sum(add).as_deref(), Some("(((a+b)+(c+d))+e)"));
/// ```
#[derive(Debug)]
pub struct Tree<T>(Vec<(u32, T)>);

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Tree<T> {
    /// Adds the next part.
    pub fn push(&mut self, part: T, add: impl Fn(T, T) -> T) {
        let (mut level, mut sum) = (0, part);
        while let Some((_, left)) = self.0.pop_if(|(height, _)| *height == level) {
            sum = add(left, sum);
            level += 1;
        }
        self.0.push((level, sum));
    }

    /// The sum of all parts; `None` of none.
    pub fn sum(self, add: impl Fn(T, T) -> T) -> Option<T> {
        self.0.into_iter().rev().map(|(_, sum)| sum).reduce(|right, left| add(left, right))
    }

    /// How many sums are held beside the part that is being made, at most, for so many parts.
    pub fn held(parts: usize) -> usize {
        parts.checked_ilog2().unwrap_or(0) as usize
    }
}

/// Adds the `parts` slices of `values`, which lie one behind the other, into the first of them.
pub(crate) fn add_slices(values: &mut [f32], parts: usize) {
    let length = values.len() / parts;
    let mut gap = 1;
    while gap < parts {
        for left in (0..parts - gap).step_by(2 * gap) {
            let (before, right) = values.split_at_mut((left + gap) * length);
            let left = &mut before[left * length..][..length];
            left.iter_mut().zip(&right[..length]).for_each(|(sum, part)| *sum += part);
        }
        gap *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same tree, by its definition.
    fn by_gaps(mut parts: Vec<String>) -> String {
        let mut gap = 1;
        while gap < parts.len() {
            for left in (0..parts.len() - gap).step_by(2 * gap) {
                parts[left] = format!("({}+{})", parts[left], parts[left + gap]);
            }
            gap *= 2;
        }
        parts.swap_remove(0)
    }

    #[test]
    fn parts_that_come_one_by_one_are_added_as_by_gaps() {
        let add = |left: String, right: String| format!("({left}+{right})");
        for count in 1..=17 {
            let parts: Vec<String> = (0..count).map(|part| part.to_string()).collect();
            let mut tree = Tree::default();
            let mut most = 0;
            for part in parts.clone() {
                most = most.max(tree.0.len());
                tree.push(part, add);
            }
            assert!(most <= Tree::<String>::held(count), "{count} parts hold {most} sums");
            assert_eq!(tree.sum(add).unwrap(), by_gaps(parts));
        }
        assert_eq!(Tree::<String>::default().sum(add), None);
    }

    #[test]
    fn groups_of_a_power_of_two_are_subtrees() {
        let parts: Vec<String> = (0..12).map(|part| part.to_string()).collect();
        let whole = by_gaps(parts.clone());
        for group in [1, 2, 4] {
            assert_eq!(by_gaps(parts.chunks(group).map(|group| by_gaps(group.to_vec())).collect()), whole);
        }
    }

    #[test]
    fn slices_are_added_in_the_same_order() {
        // 2^24 + 1 is no f32: the order shows.
        for (parts, sum) in [(1, 16_777_216.0), (2, 16_777_216.0), (3, 16_777_216.0), (4, 16_777_218.0)] {
            let mut values = vec![1.0; 2 * parts];
            values[0] = 16_777_216.0;
            add_slices(&mut values, parts);
            assert_eq!(values[..2], [sum, parts as f32], "{parts}");
        }
    }

    #[test]
    fn minus_zero_adds_nothing() {
        for value in [0.0_f32, -0.0, 1.0, f32::MIN_POSITIVE / 2.0] {
            assert_eq!((value + -0.0).to_bits(), value.to_bits());
            assert_eq!((-0.0 + value).to_bits(), value.to_bits());
        }
    }
}
