//! One page that holds everything: roofline, timeline, tables. It loads nothing.

use serde_json::json;

use super::Profile;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

/// The page as text.
pub fn page(profile: &Profile) -> String {
    let data = json!({
        "profile": profile, "operations": profile.operations(), "kernels": profile.kernels(),
        "images_per_second": profile.images_per_second(), "version": env!("CARGO_PKG_VERSION"),
    });
    // No text of the data can end the element that holds it.
    let data = data.to_string().replace('<', "\\u003c");
    PAGE.replace("@@SCRIPT@@", SCRIPT).replace("@@DATA@@", &data)
}
