//! Paths of cgroups: whoever may make a cgroup may name it as he likes.
#![no_main]

use guard_core::identity::{Identity, Labels, container, extra_container, pod_container};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = &*String::from_utf8_lossy(bytes);
    let extra = extra_container(path);
    assert_eq!(Labels::of(&extra, true, path).container, path);
    let Some(found) = container(path) else {
        assert_eq!(pod_container(path), None, "a container beneath the pods' root is one anywhere");
        return;
    };
    let Identity { pod_uid, container_id, runtime } = &found;
    assert!(container_id.len() == 64 && path.contains(container_id.as_str()), "{found:?}");
    assert_eq!((&extra.container_id, &extra.runtime), (container_id, runtime), "the last part tells");
    assert_eq!(Labels::of(&found, false, path).container, container_id[..12]);
    assert!(pod_container(path).is_none_or(|pod| pod == found));
    let plain = format!("pod{pod_uid}/{runtime}-{container_id}");
    assert_eq!(pod_container(&plain), Some(found), "written in another layout");
});
