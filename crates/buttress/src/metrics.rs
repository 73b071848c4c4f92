//! `/metrics`: every part keeps its own figures; here they become one page in Prometheus' text form.

/// Parts that can print their figures, in the order of the page.
#[derive(Default)]
pub struct Metrics {
    parts: Vec<Box<dyn Fn(&mut String) + Send + Sync>>,
}

impl Metrics {
    pub fn add(&mut self, part: impl Fn(&mut String) + Send + Sync + 'static) {
        self.parts.push(Box::new(part));
    }

    pub fn render(&self) -> String {
        let mut page = String::with_capacity(16 * 1024);
        self.parts.iter().for_each(|part| part(&mut page));
        page
    }
}
