//! Atomic writes, and safetensors files read back by the format's own crate.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::TensorView;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::safetensors::{Dtype, Layout, TensorHeader, write_f32};
use super::*;

/// Names in a folder, hidden ones included.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_written_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counts.json");
    write_bytes(&path, b"first").unwrap();
    write_bytes(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(folder.path()), ["counts.json"]);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counts.json");
    write_bytes(&path, b"first").unwrap();
    let error = write_atomically(&path, |writer| {
        writer.write_all(b"half")?;
        Err(io::Error::from(ErrorKind::StorageFull))
    })
    .unwrap_err();
    assert!(error.is_out_of_space());
    let message = error.to_string();
    assert!(message.contains("counts.json") && message.contains("disk is full"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(names(folder.path()), ["counts.json"]);
}

#[test]
fn lines_after_one_that_was_cut_off_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    append_lines(&file, "one\n").unwrap();
    fs::write(&file, "one\ntw").unwrap();
    append_lines(&file, "three\nfour\n").unwrap();
    append_lines(&file, "five\n").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntw\nthree\nfour\nfive\n");
}

#[test]
fn paths_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = write_bytes(&folder.path().join("no/such/file"), b"").unwrap_err();
    assert!(matches!(missing, Error::Io { action: Action::Create, .. }), "{missing}");
    assert!(missing.to_string().contains("no/such/file"));
    assert!(matches!(write_bytes(Path::new("/"), b"").unwrap_err(), Error::NoName { .. }));
    assert!(matches!(write_bytes(Path::new(".."), b"").unwrap_err(), Error::NoName { .. }));
    // A folder stands there.
    let error = write_bytes(folder.path(), b"").unwrap_err();
    assert!(matches!(error, Error::Io { action: Action::Write, .. }), "{error}");
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn nothing_is_writable_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    fs::write(&open, b"x").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    let out = folder.path().join("out");
    write_folder_atomically(&out, Existing::Refuse, |folder| copy_file(&open, &folder.join("copy"))).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out) & 0o022, 0);
    assert_eq!(mode(&out.join("copy")) & 0o133, 0);
    assert_eq!(mode(&out.join("copy")) & 0o600, 0o600);
}

#[test]
fn a_folder_is_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    let error = write_folder_atomically::<Error>(&path, Existing::Refuse, |inside| {
        write_bytes(&inside.join("one"), b"1")?;
        assert!(!path.exists());
        Err(Error::NoName { path: inside.to_path_buf() })
    });
    assert!(error.is_err());
    assert!(names(folder.path()).is_empty());

    write_folder_atomically(&path, Existing::Refuse, |inside| write_bytes(&inside.join("one"), b"1"))
        .unwrap();
    assert_eq!(names(folder.path()), ["adapter"]);
    assert_eq!(fs::read(path.join("one")).unwrap(), b"1");
}

#[test]
fn an_occupied_folder_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    let fill = |name: &'static str| move |inside: &Path| write_bytes(&inside.join(name), b"");
    fs::create_dir(&path).unwrap();
    write_folder_atomically(&path, Existing::Refuse, fill("one")).unwrap();
    let error = write_folder_atomically(&path, Existing::Refuse, fill("two")).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    assert_eq!(names(&path), ["one"]);
    write_folder_atomically(&path, Existing::Replace, fill("two")).unwrap();
    assert_eq!(names(&path), ["two"]);
    assert_eq!(names(folder.path()), ["adapter"]);
    let error = write_folder_atomically(&path.join("two"), Existing::Replace, fill("three")).unwrap_err();
    assert!(matches!(error, Error::NotAFolder { .. }), "{error}");
}

#[test]
fn what_killed_writers_left_is_swept_and_what_they_were_replacing_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    for name in [".best.old-12-0", ".best.tmp-12-1", ".step-4.gone-12-2", ".step-8.old-3-0", "step-8"] {
        fs::create_dir(inside(name)).unwrap();
        fs::write(inside(name).join("of"), name).unwrap();
    }
    for name in [".metrics.jsonl.tmp-9-9", ".lock", ".hidden-1-2", ".x.tmp-1-z", "notes.tmp-1-1"] {
        fs::write(inside(name), "").unwrap();
    }
    sweep(folder.path()).unwrap();
    assert_eq!(
        names(folder.path()),
        [".hidden-1-2", ".lock", ".x.tmp-1-z", "best", "notes.tmp-1-1", "step-8"]
    );
    assert_eq!(fs::read_to_string(inside("best").join("of")).unwrap(), ".best.old-12-0");
    assert_eq!(fs::read_to_string(inside("step-8").join("of")).unwrap(), "step-8");
    sweep(&inside("absent")).unwrap();
}

#[test]
fn a_folder_is_removed_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-1");
    create_folder(&path.join("deep")).unwrap();
    remove_folder(&path).unwrap();
    remove_folder(&path).unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_lock_keeps_others_out_until_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let held = lock::Lock::try_take(&path).unwrap().unwrap();
    assert!(held.is_effective());
    assert!(lock::Lock::try_take(&path).unwrap().is_none());
    drop(held);
    assert!(names(folder.path()).is_empty());
    // What a killed process leaves is a file, and no lock.
    fs::write(&path, "").unwrap();
    assert!(lock::Lock::try_take(&path).unwrap().is_some());
    let error = lock::Lock::try_take(&folder.path().join("no/.lock")).unwrap_err();
    assert!(error.to_string().contains("no/.lock"), "{error}");
}

#[test]
fn folders_above_are_created() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    create_folder(&deep).unwrap();
    create_folder(&deep).unwrap();
    write_bytes(&deep.join("file"), b"").unwrap();
    let error = create_folder(&deep.join("file")).unwrap_err();
    assert!(matches!(error, Error::NotAFolder { .. }), "{error}");
}

fn header(name: &str, dtype: Dtype, shape: &[usize]) -> TensorHeader {
    TensorHeader { name: name.into(), dtype, shape: shape.to_vec() }
}

/// The file a layout writes, with `fill` for every byte of data.
fn write_layout(layout: &Layout, data: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut file = Vec::new();
    layout.write(&mut file, |tensor, out| out.write_all(&data[&tensor.name])).unwrap();
    assert_eq!(file.len() as u64, layout.bytes());
    file
}

#[test]
fn same_bytes_as_the_reference_writer() {
    // With one metadata key its hash map has only one order.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let data = BTreeMap::from([
        ("b".to_owned(), vec![1, 2, 3]),
        ("a \"quoted\" é".to_owned(), vec![4; 8]),
        ("c".to_owned(), vec![5; 12]),
        ("empty".to_owned(), vec![]),
    ]);
    let headers = vec![
        header("b", Dtype::U8, &[3]),
        header("a \"quoted\" é", Dtype::BF16, &[2, 2]),
        header("c", Dtype::F32, &[3, 1]),
        header("empty", Dtype::F32, &[0, 7]),
    ];
    let ours = write_layout(&Layout::new(&metadata, headers.clone()).unwrap(), &data);
    let views: Vec<_> = headers
        .iter()
        .map(|tensor| {
            (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &data[&tensor.name]).unwrap())
        })
        .collect();
    let theirs =
        ::safetensors::serialize(views, Some(metadata.into_iter().collect::<HashMap<_, _>>())).unwrap();
    assert_eq!(ours, theirs);
}

#[test]
fn tensors_that_cannot_share_a_file_are_named() {
    let plan = |tensors: Vec<TensorHeader>| Layout::new(&BTreeMap::new(), tensors).unwrap_err().to_string();
    let twice = plan(vec![header("a", Dtype::F32, &[1]), header("a", Dtype::U8, &[1])]);
    assert!(twice.contains("`a`") && twice.contains("two"), "{twice}");
    assert!(plan(vec![header("__metadata__", Dtype::F32, &[1])]).contains("reserves"));
    assert!(plan(vec![header("huge", Dtype::F32, &[usize::MAX, 2])]).contains("`huge`"));
    assert!(plan(vec![header("nibble", Dtype::F4, &[3])]).contains("`nibble`"));
}

#[test]
fn too_few_bytes_are_an_error() {
    let layout = Layout::new(&BTreeMap::new(), vec![header("a", Dtype::F32, &[2])]).unwrap();
    let error = layout.write(&mut Vec::new(), |_, out| write_f32(out, &[1.0])).unwrap_err();
    assert!(error.to_string().contains("takes 8 bytes, but 4 were given"), "{error}");
}

proptest! {
    #[test]
    fn the_reference_reader_reads_what_is_written(
        metadata in btree_map(any::<String>(), any::<String>(), 0..5),
        tensors in btree_map("[a-z.]{1,12}", (0_usize..4, vec(0_usize..4, 0..4), any::<u8>()), 0..8),
    ) {
        const DTYPES: [Dtype; 4] = [Dtype::U8, Dtype::F16, Dtype::F32, Dtype::I64];
        let headers: Vec<TensorHeader> =
            tensors.iter().map(|(name, (dtype, shape, _))| header(name, DTYPES[*dtype], shape)).collect();
        let data: BTreeMap<String, Vec<u8>> = tensors
            .iter()
            .map(|(name, (dtype, shape, byte))| {
                let bytes = shape.iter().product::<usize>() * DTYPES[*dtype].bitsize() / 8;
                (name.clone(), (0..bytes).map(|position| byte.wrapping_add(position as u8)).collect())
            })
            .collect();
        let file = write_layout(&Layout::new(&metadata, headers.clone()).unwrap(), &data);
        let mut reversed = headers.clone();
        reversed.reverse();
        prop_assert_eq!(&write_layout(&Layout::new(&metadata, reversed).unwrap(), &data), &file);

        let (length, parsed) = SafeTensors::read_metadata(&file).unwrap();
        prop_assert_eq!(length % 8, 0);
        let read_metadata: BTreeMap<String, String> = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        prop_assert_eq!(read_metadata, metadata);
        let read = SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(read.len(), headers.len());
        for tensor in &headers {
            let view = read.tensor(&tensor.name).unwrap();
            prop_assert_eq!(view.dtype(), tensor.dtype);
            prop_assert_eq!(view.shape(), &tensor.shape[..]);
            prop_assert_eq!(view.data(), &data[&tensor.name][..]);
        }
    }
}
