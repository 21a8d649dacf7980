"use strict";
// Adds to a page that can be read without it: checks the page and its records, filters answers.
(() => {
  const rounds = Array.from({ length: 64 });
  // The fractional parts of roots of primes (FIPS 180-4), computed instead of listed.
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0;
  const constants = primes.map((p) => fraction(Math.cbrt(p)));
  const start = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  const turn = (x, n) => (x >>> n) | (x << (32 - n));

  // SHA-256 by itself: a browser offers its own only to pages from a server it trusts.
  function sha256(text) {
    const bytes = new TextEncoder().encode(text);
    const padded = new Uint8Array(((bytes.length + 8) >> 6) * 64 + 64);
    padded.set(bytes);
    padded[bytes.length] = 0x80;
    const view = new DataView(padded.buffer);
    view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
    view.setUint32(padded.length - 4, bytes.length << 3);
    const state = Int32Array.from(start);
    const w = new Int32Array(64);
    for (let block = 0; block < padded.length; block += 64) {
      for (let i = 0; i < 16; i++) w[i] = view.getInt32(block + 4 * i);
      for (let i = 16; i < 64; i++) {
        const a = w[i - 15], b = w[i - 2];
        const low = turn(a, 7) ^ turn(a, 18) ^ (a >>> 3);
        const high = turn(b, 17) ^ turn(b, 19) ^ (b >>> 10);
        w[i] = (w[i - 16] + low + w[i - 7] + high) | 0;
      }
      let [a, b, c, d, e, f, g, h] = state;
      rounds.forEach((_, i) => {
        const one = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
        const added = (h + one + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
        const two = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
        const other = (two + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + added) | 0, c, b, a, (added + other) | 0];
      });
      [a, b, c, d, e, f, g, h].forEach((value, i) => { state[i] = (state[i] + value) | 0; });
    }
    return Array.from(state, (x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
  }

  // What the page holds, as page/seal.py writes it out: elements, attributes, texts, in order.
  function writeContent(node, parts) {
    for (const child of node.childNodes) {
      const isBeside = node === document.documentElement; // the body: a browser keeps no text there
      if (child.nodeType === Node.TEXT_NODE && !isBeside) parts.push(child.data);
      if (child.nodeType === Node.COMMENT_NODE) parts.push("#comment"); // no page of ours has one
      if (child.nodeType !== Node.ELEMENT_NODE) continue;
      const tag = child.tagName.toLowerCase();
      const isSeal = ["seal", "content-seal"].includes(child.getAttribute("name"));
      parts.push(`<${tag}`);
      for (const { name, value } of child.attributes)
        if (!isSeal || name !== "content") parts.push(` ${name.toLowerCase()}=${value}`);
      parts.push(">");
      writeContent(child, parts);
      parts.push(`</${tag}>`);
    }
    return parts;
  }

  const byId = (id) => document.getElementById(id);

  function checkPage(content) {
    const result = byId("result");
    const seal = document.querySelector('meta[name="content-seal"]');
    const isWhole = seal !== null && sha256(content) === seal.content;
    let documents;
    try {
      documents = JSON.parse(byId("data").textContent).documents;
    } catch {
      result.className = "worse";
      result.textContent = "✗ The records of this page cannot be read: it was changed.";
      return;
    }
    const cells = document.querySelectorAll("#documents td.state");
    const changed = [];
    documents.forEach((each, at) => {
      const fine = sha256(each.text) === each.sha256;
      if (!fine) changed.push(each.name);
      if (!cells[at]) return;
      cells[at].textContent = fine ? "✓ as written" : "✗ changed";
      cells[at].className = fine ? "state better" : "state worse";
    });
    const count = documents.length;
    result.className = changed.length || !isWhole ? "worse" : "better";
    if (changed.length)
      result.textContent = `✗ ${changed.length} of ${count} records changed: ${changed.join(", ")}.`;
    else if (!isWhole)
      result.textContent = `✗ The page was changed; its ${count} records are as they were written.`;
    else result.textContent = `✓ The page and all ${count} records are as they were written.`;
    if (changed.length) byId("documents").open = true;
  }

  function filterAnswers(filter) {
    const wanted = filter.value.toLowerCase();
    const rows = [...document.querySelectorAll("table.stack tbody")];
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    byId("found").textContent = wanted ? `${shown} of ${rows.length}` : "";
    if (wanted) for (const each of document.querySelectorAll("details.answers")) each.open = true;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const content = writeContent(document, []).join(""); // before anything below changes it
    const button = byId("check");
    button.hidden = false;
    button.addEventListener("click", () => checkPage(content));
    const self = document.querySelector(".family .box.root"); // in view on a narrow screen too
    if (self) {
      const box = self.closest(".wide");
      const { x, width } = self.getBBox();
      box.scrollLeft = x + width / 2 - box.clientWidth / 2;
    }
    const filter = byId("filter");
    if (!filter) return;
    filter.closest("p").hidden = false;
    filter.addEventListener("input", () => filterAnswers(filter));
  });
})();
