/**
 * Look at slides as a room does: open each slide at two sizes of projectors, light and dark, and save pictures. The
 * script fails if a slide is cut off, or if its code is too small to be read from the last row.
 *
 *   node .ci/browser/slides.mjs [--out runs/slides] build/slides/*.html
 */

import fs from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { chromium } from "playwright-core";

import { FLAGS, findBrowser } from "./browser.mjs";

const SIZES = [
  { width: 1280, height: 720 },
  { width: 1920, height: 1080 },
];
const LEAST_PIXELS_AT_1080 = 24;

/* global Reveal */
/** In the page: say what is wrong with the current slide. */
function faults(leastPixels) {
  const found = [];
  const slide = Reveal.getCurrentSlide();
  const scale = Reveal.getScale();
  for (const part of slide.querySelectorAll("h1, h2, h3, p, li, table, pre, img, video")) {
    if (part.closest("aside")) continue;
    const box = part.getBoundingClientRect();
    const outside = box.bottom > window.innerHeight || box.right > window.innerWidth;
    const cut = outside || part.scrollWidth > part.clientWidth + 1;
    if (cut && box.height) found.push(`cut off: ${part.tagName} ${part.textContent.trim().slice(0, 50)}`);
    if (part.matches("img, video") && box.height < 100) found.push(`only ${Math.round(box.height)} pixels high: ${part.tagName}`);
  }
  for (const code of slide.querySelectorAll(".jp-InputArea pre, .jp-RenderedHTMLCommon pre")) {
    const pixels = parseFloat(getComputedStyle(code).fontSize) * scale;
    if (pixels < leastPixels) found.push(`code of ${pixels.toFixed(1)} pixels`);
  }
  return found;
}

const { values, positionals } = parseArgs({
  options: { out: { type: "string", default: "runs/slides" } },
  allowPositionals: true,
});
const browser = await chromium.launch({ executablePath: findBrowser(), args: FLAGS });
let failed = 0;
for (const file of positionals) {
  for (const viewport of SIZES) {
    for (const theme of ["light", "dark"]) {
      const page = await browser.newPage({ viewport });
      const fetched = [];
      page.on("request", (request) => request.url().startsWith("http") && fetched.push(request.url()));
      await page.goto(`${pathToFileURL(resolve(file))}${theme === "dark" ? "?dark" : ""}`);
      await page.waitForFunction(() => window.Reveal?.isReady());
      const folder = join(values.out, `${basename(file, ".html")}-${viewport.width}-${theme}`);
      await fs.mkdir(folder, { recursive: true });
      const total = await page.evaluate(() => Reveal.getTotalSlides());
      for (let number = 1; number <= total; number++) {
        await page.waitForTimeout(300); // pictures and videos get their sizes
        const least = viewport.height === 1080 ? LEAST_PIXELS_AT_1080 : 0;
        for (const fault of await page.evaluate(faults, least)) {
          console.log(`${folder}, slide ${number}: ${fault}`);
          failed++;
        }
        await page.screenshot({ path: join(folder, `${String(number).padStart(2, "0")}.png`) });
        await page.evaluate(() => Reveal.next());
      }
      for (const url of fetched) {
        console.log(`${folder}: the page fetched ${url}`);
        failed++;
      }
      console.log(`${folder}: ${total} slides`);
      await page.close();
    }
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
