"""The page with the sliders, used in a browser from a folder: its numbers are the library's, and everyone can use it."""

from urllib.parse import parse_qs

import pytest

from prunelimit.experiments import explore
from prunelimit.experiments.store import repository

pytestmark = pytest.mark.browser

PAGE = repository() / "_build" / "html" / "book" / "explore.html"


@pytest.fixture(scope="module")
def views():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
        return explore.load_views(explore.recorded_cells())


@pytest.fixture
def visit(browser):
    """Open the page with a state in its address; at the end, nothing may have gone wrong or left the folder."""
    pages, problems = [], []

    def open_page(state="", **options):
        page, scripts = browser.new_context(**options).new_page(), options.get("java_script_enabled", True)
        pages.append(page)
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("requestfailed", lambda r: problems.append(r.url) if scripts else None)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
        page.goto(PAGE.as_uri() + (f"#{state}" if state else ""))
        if scripts:
            page.wait_for_function("document.getElementById('explore-text').textContent")
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert problems == []


def numbers(page, key):
    return [float(x) for x in page.get_attribute(f"#explore-numbers [data-key={key}]", "data-value").split()]


def spoken(page):
    """Wait until the page has said what it shows, and give the sentence."""
    page.wait_for_timeout(400)
    return page.inner_text("#explore-text").replace("\u00a0", " ")


@pytest.mark.parametrize(("factor", "scale"), [(1, 1), (1 / 128, 1), (6, 1), (1, 3), (128, 1 / 8), (0.5, 5)])
def test_limits_are_those_of_the_library(visit, views, factor, scale):
    chosen = [views[0], views[1], views[len(views) // 2], views[-1]]
    page = visit()
    for view in chosen:
        page.goto(f"{PAGE.as_uri()}#network={view.key}&factor={factor:.9g}&scale={scale:.9g}")
        page.wait_for_function(f"document.getElementById('explore-network').value === '{view.key}'")
        limit = view.limit(factor, scale)
        assert numbers(page, "limit") == pytest.approx([limit.sparsity], abs=0.0003)
        assert numbers(page, "interval") == pytest.approx(list(limit.interval), abs=0.0003)
        assert numbers(page, "window") == pytest.approx([limit.lower, limit.upper], abs=0.0003)
        assert numbers(page, "kept") == pytest.approx([limit.density], abs=0.0003)
        assert numbers(page, "radius") == pytest.approx([limit.radius], rel=0.02, abs=1e-6)


def test_the_measured_limit_is_the_recorded_one_and_only_for_unscaled_weights(visit, views):
    page = visit()
    for view in views:
        page.select_option("#explore-network", view.key)
        assert numbers(page, "measured") == [view.cell.record["measured"]["sparsity"]]
        assert "recorded" in page.inner_text("#explore-numbers [data-key=measured]")
    page.focus("#explore-epsilon")
    page.keyboard.press("ArrowLeft")
    assert "interpolated" in page.inner_text("#explore-numbers [data-key=measured]")
    page.keyboard.press("End")
    assert "interpolated" in spoken(page) or "even at" in spoken(page)
    page.focus("#explore-scale")
    page.keyboard.press("ArrowRight")
    assert numbers(page, "measured") == []
    assert "scaled weights is not measured" in spoken(page)


def test_every_network_is_offered(visit, views):
    page = visit()
    offered = page.eval_on_selector_all("#explore-network option", "all => all.map(o => o.value)")
    assert offered == [view.key for view in views]


def test_a_reader_without_a_mouse_moves_the_curve_and_hears_of_it(visit):
    page = visit()
    before, limit, picture = spoken(page), numbers(page, "limit"), page.inner_html("#explore-frame")
    page.focus("#explore-network")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explore-epsilon"
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#explore-epsilon", "aria-valuetext").endswith("nats, 2 times the default")
    assert numbers(page, "limit") > limit
    assert page.inner_html("#explore-frame") != picture
    after = spoken(page)
    assert after != before
    assert f"cross at {100 * numbers(page, 'limit')[0]:.1f} %" in after
    assert page.get_attribute("#explore-text", "aria-live") == "polite"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explore-scale"
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#explore-scale", "aria-valuetext") == "weights 0.917 times"
    page.focus("#explore-reset")
    page.keyboard.press("Enter")
    assert spoken(page) == before


def test_the_picture_has_a_name_and_its_text(visit):
    page = visit()
    image = page.get_by_role("img", name="Removable and removed fraction of the weights against the sparsity")
    assert image.count() == 1
    assert page.text_content("#explore-description") == page.text_content("#explore-text")
    for name in ("Network", "Tolerance ε", "Weights times c", "Zoom in on the crossing", "Reset the sliders"):
        role = {"Network": "combobox", "Zoom in on the crossing": "checkbox", "Reset the sliders": "button"}
        assert page.get_by_role(role.get(name, "slider"), name=name).count() == 1, name


def test_scaling_the_weights_is_undone_by_the_tolerance(visit):
    page = visit()
    start = numbers(page, "limit")
    page.get_by_role("button", name="c = 2", exact=True).click()
    assert numbers(page, "limit") < start
    page.get_by_role("button", name="c = 2, ε times 4").click()
    assert numbers(page, "limit") == start


def test_a_number_can_be_typed_and_is_kept_in_range(visit, views):
    page = visit()
    page.fill("#explore-scale-number", "3")
    page.keyboard.press("Enter")
    assert numbers(page, "limit") == pytest.approx([views[0].limit(scale=3.0).sparsity], abs=0.0003)
    for wrong, kept in (("1000", "8"), ("-1", "1"), ("", "1")):
        page.fill("#explore-scale-number", wrong)
        page.keyboard.press("Tab")
        assert page.input_value("#explore-scale-number") == kept
    page.fill("#explore-epsilon-number", f"{2 * views[0].epsilon:.9g}")
    page.keyboard.press("Tab")
    assert page.get_attribute("#explore-epsilon", "aria-valuetext").endswith(", 2 times the default")


def test_a_link_shows_the_same_view(visit, views):
    page = visit()
    page.select_option("#explore-network", views[-1].key)
    page.fill("#explore-scale-number", "1.7")
    page.focus("#explore-epsilon")
    page.keyboard.press("PageUp")
    page.check("#explore-zoom")
    said = spoken(page)
    state = page.url.split("#")[1]
    assert parse_qs(state)["network"] == [views[-1].key]
    again = visit(state)
    assert spoken(again) == said
    assert again.is_checked("#explore-zoom")
    assert again.inner_html("#explore-frame") == page.inner_html("#explore-frame")


def test_a_broken_link_shows_the_first_network(visit, views):
    page = visit("network=nothing&factor=many&scale=-3")
    assert page.input_value("#explore-network") == views[0].key
    assert numbers(page, "limit") == pytest.approx([views[0].limit().sparsity], abs=0.0003)


@pytest.mark.parametrize("options", [{"viewport": {"width": 390, "height": 844}}, {"color_scheme": "dark"}])
def test_it_fits_a_phone_and_the_dark_theme(visit, options):
    page = visit(**options)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#explore-picture").bounding_box()
    assert box["height"] >= 250
    assert box["x"] + box["width"] <= page.viewport_size["width"]
    text, back = page.evaluate(
        "[getComputedStyle(document.querySelector('#explore-frame text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(int(part) for part in colour[4:-1].split(",")[:3]) for colour in (text, back)]
    assert abs(light[0] - light[1]) > 380  # of 765


def test_without_scripts_there_is_a_table(visit, views):
    page = visit(java_script_enabled=False)
    assert page.locator("#the-starting-points tbody tr").count() == len(views)
    assert not page.locator("#explore").is_visible()
    assert not page.locator("button.explore-try").first.is_visible()
    assert "need JavaScript" in page.inner_text("article")


def test_no_other_page_loads_the_scripts():
    for path in PAGE.parents[1].rglob("*.html"):
        assert path == PAGE or "explore-data.js" not in path.read_text(encoding="utf-8"), path
