//! A file of the user's own readings, played through the same path as the plant's.
//!
//! `--map temperature=COLUMN` names the column of a feature; `temperature=COLUMN:k` converts kelvin to °C, and nothing
//! is ever converted unasked. `machine=COLUMN` names the machines; without it the rows are dealt out over them. A
//! feature that is not mapped is not measured. The file is read whole before anything starts, so that a mistake on the
//! last line is found before the first reading is sent.
//!
//! Understood is CSV as in RFC 4180: commas (or semicolons, where the header has no comma), quotes, CRLF or LF, and the
//! byte order mark that spreadsheets put in front.

use std::{collections::HashMap, path::Path};

use buttress_core::{Code, Error};

use super::reading::{FEATURES, Values};

/// Largest file: it is held in memory.
const FILE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// One reading of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub machine: u32,
    pub values: Values,
    pub label: Option<bool>,
}

/// The file's readings.
#[derive(Debug)]
pub struct DataFile {
    pub machines: Vec<String>,
    pub rows: Vec<Row>,
}

/// How columns become features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    features: [Option<(String, Unit)>; 5],
    machine: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    AsIs,
    Kelvin,
}

fn data_error(message: impl Into<String>) -> Error {
    Error::new(Code::DATA_FILE, message)
}

impl Mapping {
    /// Parses the values of `--map`: `temperature=COLUMN,speed=COLUMN,…`. A column whose name holds a comma is given
    /// by an option of its own and read up to the next `,feature=`.
    ///
    /// # Errors
    /// `DATA_FILE` for an unknown feature or a pair without `=`.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, Error> {
        let mut mapping = Self::default();
        let mut pairs: Vec<String> = Vec::new();
        for option in options {
            for part in option.as_ref().split(',') {
                match pairs.last_mut() {
                    Some(last) if !part.contains('=') => {
                        last.push(',');
                        last.push_str(part);
                    }
                    _ => pairs.push(part.to_owned()),
                }
            }
        }
        for pair in &pairs {
            let Some((feature, column)) = pair.split_once('=') else {
                return Err(data_error(format!("'{pair}' is not FEATURE=COLUMN")).hint(MAP_HINT));
            };
            let (feature, column) = (feature.trim(), column.trim());
            if feature == "machine" {
                mapping.machine = Some(column.to_owned());
                continue;
            }
            let Some(at) = FEATURES.iter().position(|known| *known == feature) else {
                return Err(data_error(format!("there is no feature '{feature}'"))
                    .hint(format!("features are machine, {}", FEATURES.join(", "))));
            };
            let (column, unit) = match column.strip_suffix(":k") {
                Some(column) => (column, Unit::Kelvin),
                None => (column, Unit::AsIs),
            };
            mapping.features[at] = Some((column.to_owned(), unit));
        }
        if mapping.features[0].is_none() && mapping.features[1].is_none() {
            return Err(data_error("neither temperature nor vibration is mapped to a column").hint(MAP_HINT));
        }
        Ok(mapping)
    }

    /// The names of the mapped features, for choosing a model.
    pub fn features(&self) -> Vec<&'static str> {
        FEATURES.iter().zip(&self.features).filter(|(_, column)| column.is_some()).map(|(name, _)| *name).collect()
    }
}

const MAP_HINT: &str =
    "write --map temperature=COLUMN,speed=COLUMN,… with the names of the file's header; COLUMN:k converts kelvin to °C";

impl DataFile {
    /// Reads the file at `path`; rows without a machine column are dealt out over at most `machines_max` machines.
    ///
    /// # Errors
    /// `DATA_FILE` with the line and column of what is wrong.
    pub fn read(path: &Path, mapping: &Mapping, label: Option<&str>, machines_max: u32) -> Result<Self, Error> {
        let shown = path.display();
        let cannot = |e: std::io::Error| {
            data_error(format!("cannot read '{shown}': {e}")).hint("give the path of a CSV file with a header line")
        };
        let size = std::fs::metadata(path).map_err(cannot)?.len();
        if size > FILE_BYTES_MAX {
            return Err(data_error(format!("'{shown}' has {size} bytes"))
                .hint(format!("play at most {} MiB at once", FILE_BYTES_MAX / 1024 / 1024)));
        }
        let bytes = std::fs::read(path).map_err(cannot)?;
        Self::parse(&bytes, &shown.to_string(), mapping, label, machines_max)
    }

    /// Parses the bytes of a file that messages call `shown`.
    ///
    /// # Errors
    /// As [`DataFile::read`].
    pub fn parse(
        bytes: &[u8],
        shown: &str,
        mapping: &Mapping,
        label: Option<&str>,
        machines_max: u32,
    ) -> Result<Self, Error> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            data_error(format!("'{shown}' is not a text file: line {line} is not UTF-8"))
                .hint("export the table as CSV in UTF-8")
        })?;
        let first = text.lines().next().unwrap_or_default();
        if text.contains('\0') || first.trim().is_empty() {
            return Err(data_error(format!("'{shown}' is not a CSV file: it has no header line"))
                .hint("the first line must name the columns"));
        }
        let separator = if first.contains(',') || !first.contains(';') { ',' } else { ';' };
        let mut records = Records { text, at: 0, line: 1, separator, shown };
        let header = records.next()?.expect("the first line is not empty").fields;
        if header.len() < 2 {
            return Err(data_error(format!("'{shown}' is not a CSV file: its first line has no separator"))
                .hint("the first line must name the columns, separated by commas"));
        }
        let find = |column: &str| {
            header.iter().position(|name| name.trim() == column).ok_or_else(|| {
                let hint = match nearest(column, &header) {
                    Some(near) => format!("did you mean '{}'? the columns are: {}", near.trim(), header.join(", ")),
                    None => format!("the columns are: {}", header.join(", ")),
                };
                data_error(format!("'{shown}' has no column '{column}'")).hint(hint)
            })
        };
        let mut columns = [None; 5];
        for (column, wanted) in columns.iter_mut().zip(&mapping.features) {
            if let Some((name, unit)) = wanted {
                *column = Some((find(name)?, *unit));
            }
        }
        let machine_column = mapping.machine.as_deref().map(find).transpose()?;
        let label_column = label.map(find).transpose()?;

        let mut file = Self { machines: Vec::new(), rows: Vec::new() };
        let mut known: HashMap<String, u32> = HashMap::new();
        while let Some(Record { line, fields }) = records.next()? {
            if fields.len() == 1 && fields[0].trim().is_empty() {
                continue;
            }
            if fields.len() != header.len() {
                return Err(data_error(format!(
                    "'{shown}' line {line} has {} fields, the header has {}",
                    fields.len(),
                    header.len()
                ))
                .hint("put fields that hold a separator between double quotes"));
            }
            let mut row = [f32::NAN; 5];
            for (value, column) in row.iter_mut().zip(columns) {
                let Some((column, unit)) = column else { continue };
                let text = fields[column].trim();
                // An empty field is a reading that the sensor did not give.
                if text.is_empty() {
                    continue;
                }
                let number = number(text, separator).ok_or_else(|| {
                    data_error(format!(
                        "'{shown}' line {line}, column '{}': '{}' is not a number",
                        header[column].trim(),
                        cut(text)
                    ))
                    .hint("map a column of numbers, or leave the field empty where nothing was measured")
                })?;
                *value = match unit {
                    Unit::AsIs => number,
                    Unit::Kelvin => number - 273.15,
                } as f32;
            }
            if row[0].is_nan() && row[1].is_nan() {
                return Err(data_error(format!("'{shown}' line {line} has neither temperature nor vibration"))
                    .hint("remove the line, or map a column that has a value in it"));
            }
            let label = match label_column {
                None => None,
                Some(column) => Some(truth(fields[column].trim()).ok_or_else(|| {
                    data_error(format!(
                        "'{shown}' line {line}, column '{}': '{}' is not a label",
                        header[column].trim(),
                        cut(&fields[column])
                    ))
                    .hint("a label is 0 or 1, true or false, yes or no")
                })?),
            };
            let machine = match machine_column {
                Some(column) => {
                    let name = fields[column].trim();
                    if name.is_empty() {
                        return Err(data_error(format!("'{shown}' line {line} names no machine"))
                            .hint("every row needs a machine, or leave machine out of --map"));
                    }
                    match known.get(name) {
                        Some(machine) => *machine,
                        None => {
                            let machine = file.machines.len() as u32;
                            known.insert(name.to_owned(), machine);
                            file.machines.push(name.to_owned());
                            machine
                        }
                    }
                }
                None => file.rows.len() as u32 % machines_max.max(1),
            };
            file.rows.push(Row { machine, values: Values::from_row(row), label });
        }
        if file.rows.is_empty() {
            return Err(data_error(format!("'{shown}' has no rows"))
                .hint("below the header there must be at least one reading"));
        }
        if machine_column.is_none() {
            let machines = (file.rows.len() as u32).min(machines_max.max(1));
            file.machines = (0..machines).map(super::plant::machine_name).collect();
        }
        Ok(file)
    }
}

/// A number as it may stand in a table; a comma as the decimal sign only where commas do not separate fields.
fn number(text: &str, separator: char) -> Option<f64> {
    let parsed = match separator {
        ';' => text.replace(',', ".").parse::<f64>(),
        _ => text.parse::<f64>(),
    };
    parsed.ok().filter(|number| number.is_finite())
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "1.0" | "true" | "yes" | "y" => Some(true),
        "0" | "0.0" | "false" | "no" | "n" => Some(false),
        _ => None,
    }
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The column that differs least, where that is less than half of it.
fn nearest<'a>(wanted: &str, columns: &'a [String]) -> Option<&'a str> {
    let lower = wanted.to_lowercase();
    let scored = columns.iter().map(|column| {
        let name = column.trim().to_lowercase();
        // A name without its unit is the usual slip: `Process temperature` for `Process temperature [K]`.
        let distance =
            if name.starts_with(&lower) || lower.starts_with(&name) { 0 } else { edit_distance(&lower, &name) };
        (distance, column.as_str())
    });
    let (distance, column) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance * 2 <= wanted.chars().count().max(2)).then_some(column)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

struct Record {
    line: usize,
    fields: Vec<String>,
}

struct Records<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    separator: char,
    shown: &'a str,
}

impl Records<'_> {
    fn next(&mut self) -> Result<Option<Record>, Error> {
        if self.at >= self.text.len() {
            return Ok(None);
        }
        let line = self.line;
        let mut fields = vec![String::new()];
        let mut quoted = false;
        let mut characters = self.text[self.at..].char_indices().peekable();
        let mut end = self.text.len();
        while let Some((at, character)) = characters.next() {
            let field = fields.last_mut().expect("there is always a field");
            match character {
                '"' if quoted && characters.peek().is_some_and(|(_, next)| *next == '"') => {
                    characters.next();
                    field.push('"');
                }
                '"' if quoted => quoted = false,
                '"' if field.is_empty() => quoted = true,
                '\n' if !quoted => {
                    end = self.at + at + 1;
                    self.line += 1;
                    break;
                }
                '\r' if !quoted && characters.peek().is_none_or(|(_, next)| *next == '\n') => {}
                _ if character == self.separator && !quoted => fields.push(String::new()),
                _ => {
                    if character == '\n' {
                        self.line += 1;
                    }
                    field.push(character);
                }
            }
        }
        if quoted {
            return Err(data_error(format!("'{}' line {line}: a quote is opened and not closed", self.shown))
                .hint("double a quote inside a quoted field"));
        }
        self.at = end;
        Ok(Some(Record { line, fields }))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &[u8], map: &str, label: Option<&str>) -> Result<DataFile, Error> {
        DataFile::parse(text, "f.csv", &Mapping::parse(&[map])?, label, 4)
    }

    fn check(text: &[u8], map: &str, label: Option<&str>, expected: expect_test::Expect) {
        expected.assert_eq(&match parse(text, map, label) {
            Ok(file) => format!(
                "{:?} {:?}",
                file.machines,
                file.rows.iter().map(|r| (r.machine, r.values.row(), r.label)).collect::<Vec<_>>()
            ),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn byte_order_mark_crlf_quotes_and_kelvin() {
        check(
            b"\xef\xbb\xbfid,Temp [K],\"Speed, rpm\",bad\r\na,300.15,1500,0\r\n\"b \"\"x\"\"\",301.15,1400,1\r\n",
            "machine=id,temperature=Temp [K]:k,speed=Speed, rpm",
            Some("bad"),
            expect![[
                r#"["a", "b \"x\""] [(0, [27.0, NaN, 1500.0, NaN, NaN], Some(false)), (1, [28.0, NaN, 1400.0, NaN, NaN], Some(true))]"#
            ]],
        );
    }

    #[test]
    fn rows_without_machines_are_dealt_out_and_an_empty_field_is_not_measured() {
        check(
            b"t;v\n1,5;2\n;3",
            "temperature=t,vibration=v",
            None,
            expect![[
                r#"["m-00000", "m-00001"] [(0, [1.5, 2.0, NaN, NaN, NaN], None), (1, [NaN, 3.0, NaN, NaN, NaN], None)]"#
            ]],
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let t = "temperature=Process temperature";
        check(
            b"Process temperature [K],x\n1,2",
            t,
            None,
            expect![[r#"
            'f.csv' has no column 'Process temperature' [BT0703]

            hint: did you mean 'Process temperature [K]'? the columns are: Process temperature [K], x"#]],
        );
        check(
            b"a,b\n1,2",
            "temperature=zzzz",
            None,
            expect![[r#"
            'f.csv' has no column 'zzzz' [BT0703]

            hint: the columns are: a, b"#]],
        );
        check(
            b"a,b\n1,2\n3,hot",
            "temperature=b",
            None,
            expect![[r#"
            'f.csv' line 3, column 'b': 'hot' is not a number [BT0703]

            hint: map a column of numbers, or leave the field empty where nothing was measured"#]],
        );
        check(
            b"a,b\n1,NaN",
            "temperature=b",
            None,
            expect![[r#"
            'f.csv' line 2, column 'b': 'NaN' is not a number [BT0703]

            hint: map a column of numbers, or leave the field empty where nothing was measured"#]],
        );
        check(
            b"a,b\n1,2,3",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' line 2 has 3 fields, the header has 2 [BT0703]

            hint: put fields that hold a separator between double quotes"#]],
        );
        check(
            b"a,b\r\n",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' has no rows [BT0703]

            hint: below the header there must be at least one reading"#]],
        );
        check(
            b"",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' is not a CSV file: it has no header line [BT0703]

            hint: the first line must name the columns"#]],
        );
        check(
            b"\x7fELF\x02\x01\0\0",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' is not a CSV file: it has no header line [BT0703]

            hint: the first line must name the columns"#]],
        );
        check(
            b"a,b\n\xff\xfe,1",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' is not a text file: line 2 is not UTF-8 [BT0703]

            hint: export the table as CSV in UTF-8"#]],
        );
        check(
            b"a,b\n1,\"2",
            "temperature=a",
            None,
            expect![[r#"
            'f.csv' line 2: a quote is opened and not closed [BT0703]

            hint: double a quote inside a quoted field"#]],
        );
        check(
            b"a,b\n1,maybe",
            "temperature=a",
            Some("b"),
            expect![[r#"
            'f.csv' line 2, column 'b': 'maybe' is not a label [BT0703]

            hint: a label is 0 or 1, true or false, yes or no"#]],
        );
        check(
            b"a,b\n1,1",
            "heat=a",
            None,
            expect![[r#"
            there is no feature 'heat' [BT0703]

            hint: features are machine, temperature, vibration, speed, torque, wear"#]],
        );
        check(
            b"a,b\n1,1",
            "temperature",
            None,
            expect![[r#"
            'temperature' is not FEATURE=COLUMN [BT0703]

            hint: write --map temperature=COLUMN,speed=COLUMN,… with the names of the file's header; COLUMN:k converts kelvin to °C"#]],
        );
        check(
            b"a,b\n1,1",
            "speed=a",
            None,
            expect![[r#"
            neither temperature nor vibration is mapped to a column [BT0703]

            hint: write --map temperature=COLUMN,speed=COLUMN,… with the names of the file's header; COLUMN:k converts kelvin to °C"#]],
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_with_a_hint() {
        let mapping = Mapping::parse(&["temperature=t"]).unwrap();
        let error = DataFile::read(Path::new("no/such/file.csv"), &mapping, None, 4).unwrap_err();
        assert_eq!(error.code, Code::DATA_FILE);
        assert!(error.hint.is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, "temperature=a", Some("b"));
            let mut after_header = b"a,b\n".to_vec();
            after_header.extend(&bytes);
            if let Err(error) = parse(&after_header, "temperature=a", Some("b")) {
                prop_assert_eq!(error.code, Code::DATA_FILE);
            }
        }

        #[test]
        fn what_is_quoted_reads_back(fields in proptest::collection::vec("[a-z,\"\r\n ]{0,8}", 2..5)) {
            let quoted: Vec<String> = fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
            let text = quoted.join(",");
            let mut records = Records { text: &text, at: 0, line: 1, separator: ',', shown: "f" };
            let record = records.next().unwrap().unwrap();
            prop_assert_eq!(record.fields, fields);
        }
    }
}
