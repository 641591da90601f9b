"""What belongs together is counted once."""

from glomjax.data.examples import join_clusters


def test_a_patient_in_two_sites_links_them():
    patients = ["p1", "p1", "p2", "p3", "p3", "p4"]
    sites = ["A", "B", "B", "C", "C", "D"]
    joined = join_clusters(patients, sites)
    assert joined[0] == joined[1] == joined[2]
    assert len(set(joined)) == 3
    assert joined[3] == joined[4] != joined[5]
    assert join_clusters(None, sites) == tuple(sites)
