//! Two texts held against each other, as `diff -u` tells it.

/// Lines around a change.
const AROUND: usize = 3;
/// The table of the comparison has the product of both numbers of lines; 4 Mi entries of 4 bytes are 16 MiB.
const CELLS_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Both(&'a str),
    Old(&'a str),
    New(&'a str),
}

/// The unified diff, empty where nothing differs.
pub fn unified(old_name: &str, old: &str, new_name: &str, new: &str, colours: bool) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let lines = compare(&old, &new);
    let changed: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| !matches!(line, Line::Both(_))).map(|(at, _)| at).collect();
    if changed.is_empty() {
        return String::new();
    }
    let paint = |colour: &str, text: String| match colours {
        true => format!("\x1b[{colour}m{text}\x1b[0m\n"),
        false => format!("{text}\n"),
    };
    let mut out = paint("1", format!("--- {old_name}")) + &paint("1", format!("+++ {new_name}"));
    let mut next = 0;
    while next < changed.len() {
        let begin = changed[next].saturating_sub(AROUND);
        let mut end = changed[next] + AROUND + 1;
        while next < changed.len() && changed[next] < end + AROUND {
            end = changed[next] + AROUND + 1;
            next += 1;
        }
        let hunk = &lines[begin..end.min(lines.len())];
        let count = |keep: fn(&Line<'_>) -> bool, lines: &[Line<'_>]| lines.iter().filter(|line| keep(line)).count();
        let in_old: fn(&Line<'_>) -> bool = |line| !matches!(line, Line::New(_));
        let in_new: fn(&Line<'_>) -> bool = |line| !matches!(line, Line::Old(_));
        // A range of no lines is named by the line before it.
        let range = |before: usize, lines: usize| match lines {
            0 => format!("{before},0"),
            lines => format!("{},{lines}", before + 1),
        };
        let before = &lines[..begin];
        let (old, new) =
            (range(count(in_old, before), count(in_old, hunk)), range(count(in_new, before), count(in_new, hunk)));
        out += &paint("36", format!("@@ -{old} +{new} @@"));
        for line in hunk {
            out += &match line {
                Line::Both(text) => format!(" {text}\n"),
                Line::Old(text) => paint("31", format!("-{text}")),
                Line::New(text) => paint("32", format!("+{text}")),
            };
        }
    }
    out
}

/// The longest common subsequence of lines; of very long texts only beginning and end are held against each other.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let begin = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let end = old[begin..].iter().rev().zip(new[begin..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[begin..old.len() - end], &new[begin..new.len() - end]);
    let mut lines: Vec<Line<'a>> = old[..begin].iter().map(|line| Line::Both(line)).collect();
    if a.len().saturating_mul(b.len()) > CELLS_MAX {
        lines.extend(a.iter().map(|line| Line::Old(line)));
        lines.extend(b.iter().map(|line| Line::New(line)));
    } else {
        // Row by row from the end: the length of what both have in common from here on.
        let width = b.len() + 1;
        let mut common = vec![0u32; (a.len() + 1) * width];
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                common[i * width + j] = match a[i] == b[j] {
                    true => common[(i + 1) * width + j + 1] + 1,
                    false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            if i < a.len() && j < b.len() && a[i] == b[j] {
                lines.push(Line::Both(a[i]));
                (i, j) = (i + 1, j + 1);
            } else if j == b.len() || i < a.len() && common[(i + 1) * width + j] >= common[i * width + j + 1] {
                lines.push(Line::Old(a[i]));
                i += 1;
            } else {
                lines.push(Line::New(b[j]));
                j += 1;
            }
        }
    }
    lines.extend(old[old.len() - end..].iter().map(|line| Line::Both(line)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn changes_are_told_with_what_is_around_them() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n";
        expect![[r"
            --- live
            +++ file
            @@ -2,7 +2,7 @@
             2
             3
             4
            -5
            +five
             6
             7
             8
            @@ -12,3 +12,4 @@
             12
             13
             14
            +15
        "]]
        .assert_eq(&unified("live", old, "file", new, false));
        assert_eq!(unified("a", old, "b", old, true), "");
        assert_eq!(unified("a", "", "b", "x\n", false), "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+x\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_comparison_holds_both_texts(old in "[abc\n]{0,40}", new in "[abc\n]{0,40}") {
            let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
            let lines = compare(&a, &b);
            let of = |skip: fn(&Line<'_>) -> bool| -> Vec<&str> {
                let kept = lines.iter().filter(|line| !skip(line));
                kept.map(|line| match line { Line::Both(text) | Line::Old(text) | Line::New(text) => *text }).collect()
            };
            prop_assert_eq!(of(|line| matches!(line, Line::New(_))), a);
            prop_assert_eq!(of(|line| matches!(line, Line::Old(_))), b);
            // Hunks do not overlap and leave no change out.
            let told = unified("o", &old, "n", &new, false);
            let changes = lines.iter().filter(|line| !matches!(line, Line::Both(_))).count();
            let shown = told.lines().skip(2).filter(|line| line.starts_with(['+', '-'])).count();
            prop_assert_eq!(changes, shown, "{}", told);
        }
    }
}
