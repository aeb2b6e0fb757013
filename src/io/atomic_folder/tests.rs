use super::*;

fn read(folder: &Path) -> String {
    fs::read_to_string(folder.join("value")).unwrap()
}

fn make(folder: &Path, value: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("value"), value).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn build(destination: &Path, value: &str) -> AtomicFolder {
    let folder = AtomicFolder::create(destination, Replace::Always).unwrap();
    make(folder.path(), value);
    make(&folder.path().join("nested"), "n");
    folder
}

#[test]
fn commit_creates_then_replaces_and_leaves_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("ckpt");
    build(&target, "1").commit().unwrap();
    assert_eq!(read(&target), "1");
    let second = build(&target, "2");
    assert_eq!(read(&target), "1");
    second.commit().unwrap();
    assert_eq!(read(&target), "2");
    assert_eq!(names(&target), ["nested", "value"]);
    drop(build(&target, "3"));
    assert_eq!(read(&target), "2");
    assert_eq!(names(root.path()), ["ckpt"]);
}

/// Each step of a replacement, as the disk looks when the process dies right after it.
#[test]
fn killed_at_any_step_a_complete_folder_is_found() {
    for exchange_works in [true, false] {
        for killed_after in 0..4 {
            let root = tempfile::tempdir().unwrap();
            let target = root.path().join("ckpt");
            make(&target, "old");
            let temporary = root.path().join(".ckpt.tmp-4194305-0");
            make(&temporary, "new");
            let steps: [&dyn Fn(); 3] = if exchange_works {
                [
                    &|| {
                        let swapped = swap(&temporary, &target, exchange).unwrap();
                        assert_eq!(swapped, Swapped::Exchanged);
                    },
                    &|| fs::remove_file(temporary.join("value")).unwrap(),
                    &|| remove_folder(&temporary).unwrap(),
                ]
            } else {
                [&|| move_old_aside(&target).unwrap(), &|| fs::rename(&temporary, &target).unwrap(), &|| {
                    remove_folder(&old_name(&target)).unwrap()
                }]
            };
            steps[..killed_after].iter().for_each(|step| step());
            let new_from = if exchange_works { 1 } else { 2 };
            let expected = if killed_after >= new_from { "new" } else { "old" };
            assert_eq!(read(&locate(&target)), expected);
            recover(&target).unwrap();
            assert_eq!(read(&target), expected);
            build(&target, "next").commit().unwrap();
            assert_eq!(read(&target), "next");
            assert_eq!(names(root.path()), ["ckpt"]);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_its_target_is_replaced_and_recovered() {
    let root = tempfile::tempdir().unwrap();
    let (link, target) = (root.path().join("latest"), root.path().join("disk/ckpt"));
    std::os::unix::fs::symlink("disk/ckpt", &link).unwrap();
    for value in ["1", "2"] {
        build(&link, value).commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(read(&target), value);
    }
    move_old_aside(&target).unwrap();
    assert_eq!(read(&locate(&link)), "2");
    assert_eq!(recover(&link).unwrap(), Recovery::RestoredOld);
    assert_eq!(read(&target), "2");
}

#[test]
fn fallback_swap_replaces() {
    let root = tempfile::tempdir().unwrap();
    let (target, temporary) = (root.path().join("c"), root.path().join(".c.tmp-1-1"));
    make(&target, "old");
    make(&old_name(&target), "older, left by a killed run");
    make(&temporary, "new");
    let swapped = swap(&temporary, &target, |_, _| Ok(false)).unwrap();
    assert_eq!(swapped, Swapped::MovedAside);
    assert_eq!(read(&target), "new");
    assert_eq!(read(&old_name(&target)), "old");
    assert_eq!(recover(&target).unwrap(), Recovery::RemovedOld);
    assert_eq!(recover(&target).unwrap(), Recovery::Clean);
    assert_eq!(names(root.path()), ["c"]);
}

#[test]
fn what_the_program_did_not_write_is_not_replaced() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("pictures");
    make(&target, "mine");
    let error = AtomicFolder::create(&target, Replace::IfEmpty).unwrap_err();
    assert!(matches!(&error, FileError::WouldOverwrite { found, .. } if found == "value"));
    let ours = Replace::IfOnly(|name| name.ends_with(".png"));
    assert!(AtomicFolder::create(&target, ours).is_err());
    fs::rename(target.join("value"), target.join("000001.png")).unwrap();
    AtomicFolder::create(&target, ours).unwrap().commit().unwrap();
    assert!(names(&target).is_empty());
}

#[test]
fn readers_always_find_a_complete_folder_while_it_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("ckpt");
    build(&target, "0").commit().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=30 {
                build(&target, &round.to_string()).commit().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut last = 0u32;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            assert!(locate(&target).is_dir());
            if let Ok(text) = fs::read_to_string(locate(&target).join("value")) {
                let value = text.parse().unwrap();
                assert!(value >= last);
                last = value;
            }
        }
    });
    assert_eq!(read(&target), "30");
}
