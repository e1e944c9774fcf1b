use guard_core::config::extra_globs;

use super::*;

const UID: &str = "0e3b1a1c_5b6f_4b8e_9d62_8f2f6c1a7e55";

/// A tree of folders in the place of cgroups, removed at the end.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, paths: &[String]) -> Self {
        let root = std::env::temp_dir().join(format!("egress-guard-tree-{name}-{}", std::process::id()));
        for path in paths {
            fs::create_dir_all(root.join(path)).expect("a folder");
        }
        Self(root)
    }

    fn watched(&self, pods_root: Option<&str>, extra: &[&str]) -> Watched {
        let extra: Vec<String> = extra.iter().map(|&pattern| pattern.into()).collect();
        let extra = extra_globs(&extra).expect("globs");
        Watched { root: self.0.clone(), pods_root: pods_root.map(Into::into), extra }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the tree is removed");
    }
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

fn paths(mut found: Vec<Found>) -> Vec<(String, bool)> {
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.into_iter().map(|found| (found.path, found.extra)).collect()
}

#[test]
fn the_pods_root_is_found_up_to_three_levels_deep() {
    let cases = [
        (vec!["system.slice", "kubepods.slice/kubepods-besteffort.slice"], Some("kubepods.slice")),
        (vec!["kubepods/besteffort"], Some("kubepods")),
        (vec!["kubelet.slice/kubelet-kubepods.slice"], Some("kubelet.slice/kubelet-kubepods.slice")),
        (vec!["a/b/kubepods"], Some("a/b/kubepods")),
        (vec!["a/b/c/kubepods"], None),
        (vec!["a/kubepods", "b/c/kubepods.slice"], Some("a/kubepods")),
        (vec!["kubepods.slice-not", "mykubepods"], None),
    ];
    for (index, (dirs, expected)) in cases.into_iter().enumerate() {
        let dirs: Vec<String> = dirs.into_iter().map(Into::into).collect();
        let tree = Tree::new(&format!("root{index}"), &dirs);
        assert_eq!(tree.watched(None, &[]).find_pods_root().expect("a tree").as_deref(), expected, "{dirs:?}");
    }
}

#[test]
fn of_two_pods_roots_the_one_with_containers_is_taken() {
    let slice = format!("kubepods.slice/kubepods-pod{UID}.slice");
    let shadow = format!("kubepods/burstable/pod{}", UID.replace('_', "-"));
    let tree = Tree::new("two-roots", &[shadow, slice.clone()]);
    let find = || tree.watched(None, &[]).find_pods_root().expect("a tree");
    assert_eq!(find(), None, "there is no saying yet");
    fs::create_dir(tree.0.join(format!("{slice}/cri-containerd-{}.scope", id("a")))).expect("a folder");
    assert_eq!(find().as_deref(), Some("kubepods.slice"));
}

#[test]
fn a_given_pods_root_is_used_once_it_is_there() {
    let tree = Tree::new("given", &["kubepods".into(), "mine".into()]);
    assert_eq!(tree.watched(Some("mine"), &[]).find_pods_root().expect("a tree").as_deref(), Some("mine"));
    assert_eq!(tree.watched(Some("later"), &[]).find_pods_root().expect("a tree"), None);
}

#[test]
fn a_walk_finds_containers_of_all_classes_and_nothing_inside_them() {
    let pod = format!("kubepods.slice/kubepods-pod{UID}.slice");
    let burst = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice");
    let guaranteed = format!("{pod}/cri-containerd-{}.scope", id("a"));
    let burstable = format!("{burst}/crio-{}.scope", id("b"));
    let dirs = [
        format!("{guaranteed}/nested/{}", id("c")),
        burstable.clone(),
        format!("{burst}/crio-conmon-{}.scope", id("d")),
        format!("system.slice/docker-{}.scope", id("e")),
    ];
    let tree = Tree::new("walk", &dirs);
    let found = paths(tree.watched(None, &[]).walk(Some("kubepods.slice")).expect("a tree"));
    let mut expected = vec![(guaranteed, false), (burstable, false)];
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn extra_meters_lie_outside_the_pods_root() {
    let container = format!("kubepods/pod{}/{}", UID.replace('_', "-"), id("a"));
    let dirs = [container.clone(), "system.slice/a.service/sub.service".into(), "system.slice/b.scope".into()];
    let tree = Tree::new("extra", &dirs);
    let watched = tree.watched(None, &["/system.slice/*.service", "kubepods/**", "kubepods"]);
    let expected = vec![(container, false), ("system.slice/a.service".into(), true)];
    assert_eq!(paths(watched.walk(Some("kubepods")).expect("a tree")), expected);
    // Within a metered cgroup none is metered again, and none around the pods.
    for (globs, pods_root, expected) in [
        (["**/*.service"], None, "system.slice/a.service"),
        (["system.slice/**"], Some("system.slice/a.service/sub.service"), "system.slice/b.scope"),
    ] {
        let found = paths(tree.watched(None, &globs).walk(pods_root).expect("a tree"));
        assert_eq!(found, [(expected.to_owned(), true)], "{globs:?}");
    }
}

#[test]
fn a_cgroup_that_is_not_there_is_no_error() {
    let tree = Tree::new("open", &["a".into()]);
    let watched = tree.watched(None, &[]);
    assert!(watched.open("b").expect("no error").is_none());
    let (_, id) = watched.open("a").expect("no error").expect("there");
    assert_eq!(watched.id("a").expect("no error"), Some(id));
    assert_eq!(watched.id("b").expect("no error"), None);
}

#[test]
fn paths_are_relative_to_the_cgroup_root() {
    let root = Path::new("/sys/fs/cgroup");
    for (path, expected) in [
        ("/sys/fs/cgroup/kubepods", Some("kubepods")),
        ("/sys/fs/cgroup/a/kubepods.slice/", Some("a/kubepods.slice")),
        ("kubepods", Some("kubepods")),
        ("/typo/kubepods", None),
    ] {
        assert_eq!(relative(root, Path::new(path)).as_deref(), expected, "{path}");
    }
}
