//! The nearest right word to one that is wrong.

/// The candidate that the fewest changes make of the word, if few enough do: one for short words, one in three letters
/// for others.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A longer word is no typo of a key of ours, and the comparison costs the product of both lengths.
    if word.chars().count() > 64 {
        return None;
    }
    let most = (word.chars().count() / 3).max(1);
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(changes, _)| *changes <= most)
        .min_by_key(|(changes, candidate)| (*changes, candidate.len().abs_diff(word.len())))
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_near_and_other_words_are_not() {
        let keys = ["open_for", "open_for_max", "calls_min", "calls", "window"];
        for (word, near) in [
            ("opn_for", Some("open_for")),
            ("openFor", Some("open_for")),
            ("open_fro", Some("open_for")),
            ("call", Some("calls")),
            ("min_calls", None),
            ("Window", Some("window")),
            ("x", None),
        ] {
            assert_eq!(nearest(word, keys), near, "{word}");
        }
    }
}
