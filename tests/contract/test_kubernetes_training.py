"""The training job on Kubernetes, and the job that makes its indexes beforehand."""

from tests.kubernetes import DEPLOY, built, templates
from training.recipes import vit_b

TRAINING = ("training", "training/index")


def test_training_has_the_image_that_trains() -> None:
    """No pod has the name that only the machine of the build knows."""
    for folder in TRAINING:
        pods = [t["spec"] for manifest in built(folder) for t in templates(manifest)]
        images = {container["image"] for pod in pods for container in pod["containers"]}
        assert images == {"registry.example.com/samclip:0.1.0-train"}
    assert "EXTRAS=serve,train" in (DEPLOY / "Dockerfile").read_text()


def test_the_sets_of_the_recipe_are_indexed_where_the_training_job_looks() -> None:
    (index,) = templates(built("training/index"))
    submitter, *nodes = sorted(
        templates(built("training")), key=lambda template: "volumes" in template["spec"]
    )
    assert "volumes" not in submitter["spec"]
    pods = [index["spec"], *(node["spec"] for node in nodes)]
    for key in ("volumes", "securityContext"):
        assert all(pod[key] == pods[0][key] for pod in pods)
    containers = [container for pod in pods for container in pod["containers"]]
    for key in ("env", "image", "securityContext", "volumeMounts"):
        assert all(container[key] == containers[0][key] for container in containers)
    recipe = vit_b()
    sets = (*recipe.photo_sets, *recipe.region_sets)
    assert containers[0]["args"] == [f"/data/photographs/{name}" for name, _ in sets]
