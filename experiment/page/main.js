// What was left out, and the page as a whole.

function leftOut() {
  if (!INDEX.leftOut.length) return;
  const more = INDEX.leftOutCount - INDEX.leftOut.length;
  document.getElementById("left-out").append(h("h2", {}, `Left out (${whole(INDEX.leftOutCount)})`),
    h("details", { class: "quiet" }, h("summary", {}, "files and lines that could not be used"),
      h("ul", { class: "reasons" }, INDEX.leftOut.map(([run, name, why]) =>
        h("li", {}, several ? `${INDEX.runs[run].name}: ` : "", h("span", { class: "mono" }, name), `: ${why}`)),
      more > 0 ? h("li", {}, `and ${whole(more)} more`) : null)));
}

// Ways to the sections that there are.
function jumps() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => section.querySelector("h2"));
  document.getElementById("jumps").append(...sections.map((section) =>
    h("a", { href: `#${section.id}` }, section.id === "left-out" ? "Left out" : section.querySelector("h2").textContent)));
}

let listed = null;  // the list of prompts, made last: it is the longest
notices(() => listed.keep("failed"));
gallery((at) => listed.open(at));
overview();
pairs();
curves();
categories();
listed = prompts();
leftOut();
jumps();
