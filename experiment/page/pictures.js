// Pictures and videos.

function address(run, name) {
  return INDEX.runs[run].folder + encodeURIComponent(name);
}
function pictureName(shown, row) {
  if (row.picture === 1) return `${shown.stem}_i@${row.round}_s@${row.seed}.png`;
  return typeof row.picture === "string" ? row.picture : null;
}
function nothing(why) {
  return h("span", { class: "picture none" }, why);
}
// A link to the picture or the video itself, in a tab of its own.
function linked(run, name, ...shown) {
  return h("a", { class: "picture", href: address(run, name), target: "_blank", rel: "noopener" }, shown);
}
// What of a video is in view is loaded as far as its first frame.
const watchVideos = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watchVideos.unobserve(target);
    target.preload = "metadata";
  }
}, { rootMargin: "200px" });
const PLAYS = document.createElement("video").canPlayType('video/mp4; codecs="avc1.64001f"') !== "";
// A small one plays while it is pointed at. A browser without H.264, or a damaged file: a link to it.
function video(run, name, alt, poster, small) {
  const link = () => linked(run, name, poster ? h("img", { src: poster, alt })
    : h("span", { class: "picture none" }, small ? "video" : "open the video"));
  if (!PLAYS) return link();
  const player = h("video", { preload: "none", controls: !small, loop: true, playsinline: true, poster, "aria-label": alt });
  player.muted = true;
  const box = small ? linked(run, name, player) : h("span", { class: "picture" }, player);
  if (small) {
    box.classList.add("moving");
    box.addEventListener("pointerenter", () => player.play().catch(() => {}));  // it was left before it played
    box.addEventListener("pointerleave", () => player.pause());
  }
  player.addEventListener("error", () => box.replaceWith(link()));
  player.src = address(run, name);
  watchVideos.observe(player);
  return box;
}
function picture(run, name, alt, { poster = null, small = false } = {}) {
  if (name.endsWith(".mp4")) return video(run, name, alt, poster, small);
  const link = linked(run, name);
  const image = h("img", { loading: "lazy", decoding: "async", alt });
  image.addEventListener("error", () => link.replaceWith(nothing("image missing or damaged")));
  image.src = address(run, name);
  link.append(image);
  return link;
}
function rowPicture(run, shown, row, small = true) {
  const name = pictureName(shown, row);
  const poster = row.id === shown.best ? shown.thumb : null;
  if (name !== null) return picture(run, name, `candidate ${row.id}, seed ${row.seed}`, { poster, small });
  if (row.picture === 2) return nothing("image missing");
  return nothing(row.step < row.steps ? `step ${row.step}/${row.steps}` : "not kept");
}

// Places that winners' small pictures come into, once the prompt's records are there.
function thumbPlace(at, run) {
  return h("span", { class: "thumb none", "data-run": run, color: several ? color(run) : null },
    shownOf(at, run)?.values ? null : missing(shownOf(at, run)));
}
function fillThumbs(element, at) {
  withPrompt(at, (runs) => {
    for (const place of element.querySelectorAll(".thumb.none")) {
      const run = Number(place.dataset.run), shown = runs[run];
      if (!shown?.thumb) continue;
      const title = many ? INDEX.runs[run].name : null;
      place.replaceWith(h("img", { class: "thumb", src: shown.thumb, title, alt: `the winner of ${INDEX.runs[run].name}`, color: several ? color(run) : null }));
    }
  });
}
