//! Folders of PNG and JPEG images: a sub-folder for each class, or no classes.

use std::fs;
use std::path::{Path, PathBuf};

use super::picture::{MAX_SIDE, cut_and_scale, decode, inspect};
use super::{DataError, Dataset, OpenOptions, check_request};

/// Images in a folder. They are decoded each time they are asked for, so memory holds one at a time.
#[derive(Debug)]
pub struct ImageFolder {
    name: String,
    /// Sorted by class, then by path.
    files: Vec<(PathBuf, Option<u32>)>,
    classes: Vec<String>,
    channels: usize,
    height: usize,
    width: usize,
    fit: bool,
}

impl ImageFolder {
    /// Lists the images below `folder` and checks the header of each.
    ///
    /// Sub-folders with images are classes, numbered by name; images in folders within them count too. A folder without such
    /// sub-folders has no classes. Names that begin with a dot and files other than .png, .jpg and .jpeg are left out. An alpha channel
    /// is dropped and 16-bit values are reduced to 8.
    ///
    /// # Errors
    /// [`DataError::Picture`] for an unreadable header, [`DataError::Uneven`] if sizes or channels differ and `options` does not say what
    /// to make of it, [`DataError::Unknown`] if there are no images or some lie beside the class folders, [`DataError::Os`].
    pub fn open(folder: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        let unknown =
            |problem: &str| DataError::Unknown { name: folder.display().to_string(), problem: problem.to_string() };
        if let Some((height, width)) = options.size
            && (height.min(width) == 0 || height.max(width) > MAX_SIDE as usize)
        {
            return Err(unknown(&format!("images cannot be scaled to {height} x {width}")));
        }
        if options.channels.is_some_and(|channels| !matches!(channels, 1 | 3)) {
            return Err(unknown("images have 1 or 3 channels"));
        }
        let (loose, folders) = list(folder)?;
        let mut files = Vec::new();
        let mut classes = Vec::new();
        for class_folder in folders {
            let inside = list_below(&class_folder)?;
            if !inside.is_empty() {
                let class = classes.len() as u32;
                classes.push(class_folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
                files.extend(inside.into_iter().map(|path| (path, Some(class))));
            }
        }
        if let (Some(stray), false) = (loose.first(), classes.is_empty()) {
            return Err(unknown(&format!("{} lies beside the class folders; move it into one", stray.display())));
        }
        files.extend(loose.into_iter().map(|path| (path, None)));
        let Some((first, _)) = files.first() else {
            return Err(unknown("the folder has no PNG or JPEG images"));
        };
        let (first_size, first_channels) = inspect(first)?;
        for (path, _) in &files[1..] {
            let (size, channels) = inspect(path)?;
            let uneven = |what: &dyn Fn((usize, usize), usize) -> String, remedy| DataError::Uneven {
                path: path.clone(),
                actual: what(size, channels),
                first: first.clone(),
                expected: what(first_size, first_channels),
                remedy,
            };
            if options.size.is_none() && size != first_size {
                return Err(uneven(
                    &|(height, width), _| format!("{height} x {width} pixels"),
                    "ask for a size, to which all are scaled and cut",
                ));
            }
            if options.channels.is_none() && channels != first_channels {
                return Err(uneven(
                    &|_, channels| String::from(if channels == 1 { "grey" } else { "coloured" }),
                    "ask for 1 or 3 channels, to which all are converted",
                ));
            }
        }
        let (height, width) = options.size.unwrap_or(first_size);
        Ok(Self {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            files,
            classes,
            channels: options.channels.unwrap_or(first_channels),
            height,
            width,
            fit: options.size.is_some(),
        })
    }
}

impl Dataset for ImageFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn height(&self) -> usize {
        self.height
    }

    fn width(&self) -> usize {
        self.width
    }

    fn num_classes(&self) -> Option<usize> {
        (!self.classes.is_empty()).then_some(self.classes.len())
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn levels(&self) -> u32 {
        256
    }

    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        check_request(self, index, out);
        let (path, class) = &self.files[index];
        let mut image = decode(path)?;
        if self.fit {
            image = cut_and_scale(image, self.height, self.width);
        }
        let bytes = if self.channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
        if bytes.len() != out.len() {
            return Err(DataError::Picture {
                path: path.clone(),
                problem: "its size has changed since the folder was opened".into(),
            });
        }
        out.copy_from_slice(&bytes);
        Ok(*class)
    }
}

/// The images and the folders in a folder, each sorted.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let (mut images, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(DataError::os("list", folder))? {
        let entry = entry.map_err(DataError::os("list", folder))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            folders.push(path);
        } else if extension == "png" || extension == "jpg" || extension == "jpeg" {
            images.push(path);
        }
    }
    images.sort();
    folders.sort();
    Ok((images, folders))
}

/// The images in a folder and the folders below it, sorted.
fn list_below(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    // Symbolic links can make a folder contain itself.
    const MAX_DEPTH: usize = 16;
    let mut found = Vec::new();
    let mut waiting = vec![(folder.to_path_buf(), 0)];
    while let Some((folder, depth)) = waiting.pop() {
        let (images, folders) = list(&folder)?;
        found.extend(images);
        if depth < MAX_DEPTH {
            waiting.extend(folders.into_iter().map(|folder| (folder, depth + 1)));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::open;
    use image::{GrayImage, Luma, Rgb, RgbImage, RgbaImage};

    fn rgb(path: &Path, width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_fn(width, height, |x, y| Rgb(pixel(x, y))).save(path).unwrap();
    }

    fn open_with(folder: &Path, options: OpenOptions) -> Result<Box<dyn Dataset>, DataError> {
        open(folder.to_str().unwrap(), &options)
    }

    #[test]
    fn sub_folders_are_classes_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let pixel = |n: u8| move |x: u32, y: u32| [n, x as u8 * 10, y as u8 * 20];
        rgb(&root.path().join("dog/b.png"), 3, 2, pixel(1));
        rgb(&root.path().join("cat/deep/z.PNG"), 3, 2, pixel(2));
        rgb(&root.path().join("cat/a.png"), 3, 2, pixel(3));
        fs::create_dir(root.path().join("empty")).unwrap();
        fs::write(root.path().join("cat/notes.txt"), "no image").unwrap();
        rgb(&root.path().join("cat/.hidden.png"), 9, 9, pixel(9));
        let set = open_with(root.path(), OpenOptions::default()).unwrap();
        assert_eq!((set.len(), set.channels(), set.height(), set.width()), (3, 3, 2, 3));
        assert_eq!((set.num_classes(), set.class_names()), (Some(2), vec!["cat".into(), "dog".into()]));
        for (index, first, class) in [(0, 3, 0), (1, 2, 0), (2, 1, 1)] {
            let mut out = [0; 18];
            assert_eq!(set.pixels(index, &mut out).unwrap(), Some(class));
            assert_eq!(out, [first, 0, 0, first, 10, 0, first, 20, 0, first, 0, 20, first, 10, 20, first, 20, 20]);
        }
    }

    #[test]
    fn a_flat_folder_has_no_classes_and_pictures_must_agree() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        GrayImage::from_fn(4, 4, |x, y| Luma([(x * 16 + y) as u8])).save(path("a.png")).unwrap();
        let set = open_with(root.path(), OpenOptions::default()).unwrap();
        let mut out = [0; 16];
        assert_eq!((set.channels(), set.num_classes(), set.pixels(0, &mut out).unwrap()), (1, None, None));
        assert_eq!(out[..5], [0, 16, 32, 48, 1]);

        rgb(&path("b.png"), 4, 4, |_, _| [1, 2, 3]);
        let text = open_with(root.path(), OpenOptions::default()).unwrap_err().to_string();
        assert!(text.contains("b.png is coloured") && text.contains("a.png is grey"), "{text}");
        let three = OpenOptions { channels: Some(3), ..OpenOptions::default() };
        let mut out = [0; 48];
        open_with(root.path(), three).unwrap().pixels(0, &mut out).unwrap();
        assert_eq!(out[..6], [0, 0, 0, 16, 16, 16]);

        rgb(&path("c.png"), 5, 4, |_, _| [1, 2, 3]);
        let text = open_with(root.path(), three).unwrap_err().to_string();
        assert!(text.contains("c.png is 4 x 5 pixels"), "{text}");
        rgb(&path("class/d.png"), 4, 4, |_, _| [0; 3]);
        let text = open_with(root.path(), three).unwrap_err().to_string();
        assert!(text.contains("a.png lies beside the class folders"), "{text}");
        let zero = OpenOptions { size: Some((0, 4)), ..OpenOptions::default() };
        assert!(open_with(root.path(), zero).is_err());
    }

    #[test]
    fn pictures_are_cut_in_the_centre_and_scaled() {
        let root = tempfile::tempdir().unwrap();
        // Wide: the outer thirds are red and blue and must vanish; high: the same on its side, with an alpha channel.
        rgb(&root.path().join("a.png"), 12, 4, |x, y| match x {
            0..4 => [255, 0, 0],
            4..8 => [x as u8 * 16, y as u8 * 16, 7],
            _ => [0, 0, 255],
        });
        let high =
            RgbaImage::from_fn(8, 24, |_, y| image::Rgba([if (8..16).contains(&y) { 90 } else { 200 }, 60, 30, 128]));
        high.save(root.path().join("b.png")).unwrap();
        rgb(&root.path().join("c.png"), 1, 300, |_, _| [9, 8, 7]);
        let options = OpenOptions { size: Some((4, 4)), ..OpenOptions::default() };
        let set = open_with(root.path(), options).unwrap();
        let mut out = [0; 48];
        set.pixels(0, &mut out).unwrap();
        for (position, pixel) in out.chunks(3).enumerate() {
            assert_eq!(pixel, [(position % 4 + 4) as u8 * 16, (position / 4) as u8 * 16, 7]);
        }
        set.pixels(1, &mut out).unwrap();
        assert_eq!(out, [90, 60, 30].repeat(16)[..]);
        set.pixels(2, &mut out).unwrap();
        assert_eq!(out, [9, 8, 7].repeat(16)[..]);
    }

    #[test]
    fn shrinking_averages() {
        let root = tempfile::tempdir().unwrap();
        rgb(&root.path().join("a.png"), 64, 64, |x, y| [(x * 4) as u8, (y * 4) as u8, ((x + y) % 2 * 255) as u8]);
        let set = open_with(root.path(), OpenOptions { size: Some((8, 8)), ..OpenOptions::default() }).unwrap();
        let mut out = [0; 192];
        set.pixels(0, &mut out).unwrap();
        for y in 1..7usize {
            for x in 1..7usize {
                // A ramp keeps its value at each pixel's centre, 8 k + 3.5; the checkerboard becomes grey.
                let pixel = &out[(y * 8 + x) * 3..][..3];
                let expected = [(x as f64 * 8.0 + 3.5) * 4.0, (y as f64 * 8.0 + 3.5) * 4.0, 127.5];
                for (&byte, expected) in pixel.iter().zip(expected) {
                    assert!((f64::from(byte) - expected).abs() <= 1.0, "{pixel:?} at {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn jpeg_is_read_and_damage_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.jpeg");
        rgb(&path, 16, 16, |_, _| [200, 100, 50]);
        let set = open_with(root.path(), OpenOptions::default()).unwrap();
        let mut out = [0; 768];
        set.pixels(0, &mut out).unwrap();
        for pixel in out.chunks(3) {
            assert!(pixel.iter().zip([200, 100, 50]).all(|(&a, b)| a.abs_diff(b) <= 3), "{pixel:?}");
        }
        fs::write(&path, b"\x89PNG\r\n\x1a\nnothing").unwrap();
        let text = set.pixels(0, &mut out).unwrap_err().to_string();
        assert!(text.contains("a.jpeg"), "{text}");
        assert!(matches!(open_with(root.path(), OpenOptions::default()), Err(DataError::Picture { .. })));
    }
}
