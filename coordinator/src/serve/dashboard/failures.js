// Failures by error kind: how many, which registry answered, an example, what to do, and whether requeuing helps.

import { button, h, number, plural, prose } from "./dom.js";

const STEPS = {
  requeue: ["Requeue", "main"],
  fix_and_requeue: ["Requeue after the fix", false],
};

/// `requeue` is called with a filter; null shows no buttons.
export function failureGroups(groups, requeue) {
  const kinds = groups.by_kind.map((group) => {
    const [words, style] = STEPS[group.next_step] ?? [null];
    return h("article", { class: "group" },
      h("div", { class: "row" },
        h("h3", {}, `${plural(group.failed, "image", "images")}: ${group.title.toLowerCase()}`),
        requeue && words ? button(`kind ${group.kind}`, words, () => requeue({ kind: group.kind }), { class: style, "aria-label": `${words}: ${group.title}, ${number(group.failed)}` }) : null),
      h("p", { class: "by" }, "answered by ", ...group.registries.slice(0, 5).flatMap((one, at) => [at > 0 ? ", " : "", h("code", {}, one.registry), group.registries.length > 1 ? ` (${number(one.failed)})` : ""]),
        group.registries.length > 5 ? ` and ${number(group.registries.length - 5)} more` : ""),
      h("p", { class: "detail" }, ...prose(group.example.error)),
      h("p", { class: "advice" }, ...prose(group.advice), group.next_step === "change_and_run" ? " Requeuing repeats the error: run the rule again after the change." : ""));
  });
  const unlisted = groups.unlisted.map((one) =>
    h("li", {}, h("code", {}, one.repository), h("span", { class: "kind" }, one.kind), h("p", { class: "detail" }, ...prose(one.error))));
  const more = groups.unlisted_total - groups.unlisted.length;
  return [
    ...kinds,
    unlisted.length > 0 ? h("article", { class: "group" },
      h("h3", {}, `Listing failed: ${plural(groups.unlisted_total, "repository or pattern", "repositories or patterns")}`),
      h("ul", { class: "plain-list" }, ...unlisted),
      more > 0 ? h("p", { class: "dim" }, `and ${number(more)} more`) : null,
      h("p", { class: "advice" }, "None of their images were planned. Run the rule again once the cause is gone.")) : null,
  ];
}
