pub mod plant;
pub mod reading;
pub mod training;
