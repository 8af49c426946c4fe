// Values under the pointer, read back from the paths: "M x y l dx dy ..." in tenths of a pixel.
(() => {
  const box = { left: 640, right: 4150, top: 70, bottom: 2620 };
  const tip = document.getElementById("tip");
  const known = new WeakMap();
  let cursor = null;

  const points = (d) => d.split("M").slice(1).flatMap((piece) => {
    const n = piece.split(/[ l]/).map(Number);
    const found = [[n[0], n[1]]];
    for (let i = 2; i < n.length; i += 2) {
      const [x, y] = found[found.length - 1];
      found.push([x + n[i], y + n[i + 1]]);
    }
    return found;
  });

  const look = (svg) => {
    if (known.has(svg)) return known.get(svg);
    const lines = [...svg.querySelectorAll(".m, .lost")].map((path) => {
      const title = path.querySelector("title");
      const text = title ? title.textContent : "";
      if (title) title.remove(); // else the browser would show it over the values
      const end = text.lastIndexOf(": ");
      return {
        name: end > 0 ? text.slice(0, end) : text,
        colour: path.getAttribute("stroke"),
        points: points(path.getAttribute("d")),
      };
    }).reverse(); // the first of the legend is drawn last
    known.set(svg, lines);
    return lines;
  };

  const value = (axis, share) => {
    const [low, high, log, falling] = axis;
    const at = falling ? 1 - share : share;
    return log ? low ** (1 - at) * high ** at : low + (high - low) * at;
  };

  const said = (v) => Math.abs(v) > 0 && Math.abs(v) < 1e-4
    ? v.toExponential(1)
    : v.toLocaleString("en", { maximumSignificantDigits: v >= 1000 ? 4 : 3 });

  const hide = () => {
    tip.style.display = "none";
    if (cursor) cursor.remove();
    cursor = null;
  };

  document.addEventListener("pointermove", (event) => {
    const svg = event.target instanceof Element ? event.target.closest("svg.plot") : null;
    if (!svg) return hide();
    const lines = look(svg);
    const numbers = svg.dataset.axes.split(",").map(Number);
    const across = numbers.slice(0, 4), up = numbers.slice(4);
    const frame = svg.getBoundingClientRect();
    const at = (event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width;
    const near = lines.map((line) => line.points.reduce(
      (best, p) => Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best, [Infinity, 0]));
    const x = near.reduce((b, p) => Math.abs(p[0] - at) < Math.abs(b - at) ? p[0] : b, Infinity);
    if (!isFinite(x)) return hide();
    const width = box.right - box.left, height = box.bottom - box.top;
    const words = svg.querySelector("text.x").textContent;
    const head = document.createElement("div");
    head.textContent = `${said(value(across, (x - box.left) / width))} ${words}`;
    tip.replaceChildren(head);
    lines.forEach((line, i) => {
      const [px, py] = near[i];
      if (Math.abs(px - x) > width / 20) return;
      const row = document.createElement("div"), mark = document.createElement("i");
      mark.style.background = line.colour;
      row.append(mark, `${line.name}: ${said(value(up, (box.bottom - py) / height))}`);
      tip.append(row);
    });
    if (!cursor || cursor.ownerSVGElement !== svg) {
      hide();
      cursor = document.createElementNS(svg.namespaceURI, "path");
      cursor.setAttribute("class", "cursor");
      svg.append(cursor);
    }
    cursor.setAttribute("d", `M${x} ${box.top}V${box.bottom}`);
    tip.style.display = "block";
    const beyond = event.pageX + 20 + tip.offsetWidth > document.documentElement.scrollWidth;
    tip.style.left = `${event.pageX + (beyond ? -20 - tip.offsetWidth : 20)}px`;
    tip.style.top = `${event.pageY + 16}px`;
  });
  document.addEventListener("pointerleave", hide);
  window.addEventListener("beforeprint", () => {
    hide();
    document.querySelectorAll(".claim details").forEach((each) => { each.open = true; });
  });
})();
