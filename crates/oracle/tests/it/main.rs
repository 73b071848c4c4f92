mod brute;
mod history;
mod transcripts;
