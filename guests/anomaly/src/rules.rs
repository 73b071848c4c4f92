//! The local rules: what a machine is judged by when no model can be asked.

/// Degrees Celsius above which a machine is an anomaly.
pub const TEMPERATURE_MAX: f32 = 80.0;
/// Millimetres per second of vibration above which a machine is an anomaly.
pub const VIBRATION_MAX: f32 = 5.0;
/// A score above this is an anomaly.
pub const SCORE_MAX: f32 = 0.7;

/// Whether the rules call this reading an anomaly. A value that is not known (NaN) breaks no rule.
pub fn broken(temperature: f32, vibration: f32) -> bool {
    temperature > TEMPERATURE_MAX || vibration > VIBRATION_MAX
}

/// A score in 0 to 1 that is above [`SCORE_MAX`] exactly where [`broken`] is true, and grows with the distance.
pub fn score(temperature: f32, vibration: f32) -> f32 {
    let share = |value: f32, limit: f32| if value.is_nan() { 0.0 } else { value / limit };
    let worst = share(temperature, TEMPERATURE_MAX).max(share(vibration, VIBRATION_MAX));
    if broken(temperature, vibration) {
        // Half as much again is certainty. The smallest step above the limit must still be above it.
        (SCORE_MAX + (1.0 - SCORE_MAX) * ((worst - 1.0) * 2.0).min(1.0)).max(SCORE_MAX.next_up())
    } else {
        SCORE_MAX * worst.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_agrees_with_the_rules() {
        for temperature in [f32::NAN, -40.0, 0.0, 20.0, 79.9, 80.0, 80.0f32.next_up(), 81.0, 120.0, 1e30] {
            for vibration in [f32::NAN, 0.0, 2.5, 5.0, 5.0f32.next_up(), 5.1, 9.0, 1e30] {
                let score = score(temperature, vibration);
                assert!((0.0..=1.0).contains(&score), "{temperature} {vibration}: {score}");
                assert_eq!(score > SCORE_MAX, broken(temperature, vibration), "{temperature} {vibration}: {score}");
            }
        }
    }
}
