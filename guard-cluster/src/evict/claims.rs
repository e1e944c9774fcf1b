//! Which of a pod's volumes are on its node.

use guard_core::inventory::{Pod, Volume};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{
    Outcome,
    wire::{What, Wire},
};
use crate::convert;

/// Those of the pod's claims whose volumes are local to a node. A claim without a volume, or whose volume is not there, counts:
/// what it is cannot be known.
pub(crate) async fn local(wire: &Wire, pod: &Pod) -> Result<Vec<String>, Outcome> {
    let mut local = vec![];
    let claims = pod.volumes.iter().filter_map(|volume| match volume {
        Volume::Claim { claim, .. } => Some(claim),
        _ => None,
    });
    for claim in claims {
        if is_local(wire, &pod.namespace, claim).await? {
            local.push(claim.clone());
        }
    }
    Ok(local)
}

async fn is_local(wire: &Wire, namespace: &str, claim: &str) -> Result<bool, Outcome> {
    if !convert::is_name(claim) {
        return Ok(true);
    }
    let uri = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    let claim = wire.get::<PersistentVolumeClaim>(What::Claim, &uri).await?;
    let volume = claim.and_then(|(claim, _)| claim.spec?.volume_name).filter(|name| !name.is_empty());
    let Some(volume) = volume else { return Ok(true) };
    let volume = wire.get::<PersistentVolume>(What::Claim, &format!("/api/v1/persistentvolumes/{volume}")).await?;
    let spec = volume.and_then(|(volume, _)| volume.spec);
    Ok(convert::is_local(spec.as_ref()))
}
