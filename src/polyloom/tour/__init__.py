"""Layer 4: the tour takes one model through all rooms and writes one report."""

from polyloom.core.registry import RoomCard, Verb

CARD = RoomCard(
    name="tour",
    title="The tour",
    question="Take one small multilingual model, or yours, through all rooms and write one report.",
    papers=(),
    verbs=(Verb("run", "Run the tour.", "polyloom.tour.config:TourConfig", "polyloom.tour.study:run_tour"),),
    order=0,
    page="polyloom.tour.report:page",
)
