/**
 * Look at notebooks as a reader does: run copies of them in JupyterLab in a browser, move their widgets, and save
 * pictures. If a cell or a widget raises an error, the script names the notebook and the cell, and fails.
 * `make screenshots` runs it on all notebooks.
 *
 *   node .ci/browser/look.mjs [--out runs/screenshots] [--timeout SECONDS] [notebooks/*.ipynb]
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs/promises";
import os from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import { chromium } from "playwright-core";

import { FLAGS, findBrowser } from "./browser.mjs";

/* global look: page.js puts it into the page */
const ROOT = join(import.meta.dirname, "../..");
const FOLDERS =
  "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR " +
  "JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR";
const SETTINGS = {
  // The page keeps cells that are out of sight. Otherwise their widgets and the length of the notebook are unknown.
  "@jupyterlab/notebook-extension:tracker": { windowingMode: "none" },
  "@jupyterlab/apputils-extension:notification": { fetchNews: "false", checkForUpdates: false },
};

/** For each kind of widget, a function that gives it another value. */
const MOVES = {
  ".widget-toggle-buttons": (buttons) => buttons.locator("button:not(.mod-active)").first().click(),
  ".noUi-handle": async (handle) => {
    const value = () => handle.getAttribute("aria-valuenow");
    const start = await value();
    await handle.press("ArrowRight");
    if ((await value()) === start) await handle.press("ArrowLeft"); // it was at its right end
  },
  ".widget-dropdown select": async (list) =>
    list.selectOption({ index: await list.evaluate((it) => (it.selectedIndex + 1) % it.length) }),
};

/** Functions that undo what the script started. The newest is called first. */
const endings = [];

/** Wait for a true value of `check` and return it, or return undefined after this many seconds. */
async function until(check, seconds) {
  for (const end = Date.now() + 1000 * seconds; Date.now() < end; await sleep(100)) {
    const value = await check();
    if (value) return value;
  }
}

async function startBrowser(folder) {
  const starting = chromium.launchPersistentContext(join(folder, "browser"), {
    executablePath: findBrowser(),
    args: FLAGS,
    viewport: { width: 1280, height: 1600 },
    ...{ handleSIGINT: false, handleSIGTERM: false, handleSIGHUP: false }, // the end of this file handles the signals
  });
  endings.push(() => starting.then((browser) => browser.close(), () => {}));
  const browser = await starting;
  await browser.addInitScript({ path: join(import.meta.dirname, "page.js") });
  browser.setDefaultTimeout(60_000);
  return browser;
}

/** Start JupyterLab in a folder, without the user's settings. Return its address and token as soon as it answers. */
async function startJupyterLab(folder) {
  const own = Object.fromEntries(FOLDERS.split(" ").map((name) => [name, join(folder, name)]));
  const settings = join(own.JUPYTER_CONFIG_DIR, "labconfig");
  await fs.mkdir(settings, { recursive: true });
  await fs.writeFile(join(settings, "default_setting_overrides.json"), JSON.stringify(SETTINGS));

  // JupyterLab is detached, so that Ctrl-C reaches only this script. Otherwise JupyterLab would ask for confirmation.
  const options = { cwd: folder, env: { ...process.env, ...own }, detached: true, stdio: ["ignore", "ignore", "pipe"] };
  const flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--expose-app-in-browser"];
  const server = spawn(join(ROOT, ".venv/bin/python"), ["-m", "jupyterlab", ...flags], options);
  await once(server, "spawn");
  endings.push(() => stop(server));
  let log = "";
  server.stderr.on("data", (text) => (log = (log + text).slice(-2000)));

  const info = join(own.JUPYTER_RUNTIME_DIR, `jpserver-${server.pid}.json`);
  const answer = () => fs.readFile(info, "utf8").then(JSON.parse).catch(() => server.exitCode !== null);
  const found = await until(answer, 60);
  if (!found?.url) throw new Error(`JupyterLab does not start:\n${log}`);
  return found;
}

async function stop(server) {
  server.kill(); // this sends SIGTERM, on which JupyterLab ends its kernels first
  await until(() => server.exitCode !== null || server.signalCode, 20);
  server.kill("SIGKILL");
}

/** Run all cells, and return a list of problems. */
async function runCells(page, seconds) {
  await Promise.race([page.evaluate(() => look.run()), sleep(1000 * seconds)]);
  const errors = await page.evaluate(() => look.errors());
  if (errors.length) return errors;
  const [cell] = await page.evaluate(() => look.unfinished());
  if (cell) return [`${cell}: not done; its kernel died, or ${seconds} seconds were not enough`];
  const loading = page.getByText("Loading widget...", { exact: true });
  await until(async () => !(await loading.count()), 10);
  const missing = await page.locator(".jupyter-widgets-error-widget").or(loading).all();
  return Promise.all(missing.map((it) => it.evaluate((widget) => `${look.cellOf(widget)}: a widget is not shown`)));
}

/** Move every widget once, and return a list of problems. */
async function moveWidgets(page) {
  const problems = [];
  for (const [kind, move] of Object.entries(MOVES)) {
    for (const widget of await page.locator(`.jp-Cell-outputArea ${kind}`).all()) {
      const shown = () => widget.evaluate((it) => look.shownBeside(it));
      const before = await shown();
      await move(widget);
      await Promise.race([page.evaluate(() => look.settle()), sleep(60_000)]);
      const errors = await widget.evaluate((it) => look.errors(it));
      if (errors.length || (await until(async () => (await shown()) !== before, 10))) problems.push(...errors);
      else problems.push(`${await widget.evaluate((it) => look.cellOf(it))}: ${kind} moved, and nothing changed`);
    }
  }
  return problems;
}

/** Save pictures of the whole notebook as name-01.png, name-02.png and so on. They replace earlier ones. */
async function photograph(page, name, folder) {
  await fs.mkdir(folder, { recursive: true });
  const earlier = (await fs.readdir(folder)).filter((file) => file.startsWith(`${name}-`));
  await Promise.all(earlier.map((file) => fs.rm(join(folder, file))));
  await page.mouse.move(0, 0); // anything under the mouse looks different
  const starts = await page.evaluate(() => look.pageStarts());
  for (const [i, start] of starts.entries()) {
    await page.evaluate((top) => look.scrollTo(top), start);
    await page.screenshot({ path: join(folder, `${name}-${String(i + 1).padStart(2, "0")}.png`) });
  }
}

/** Run a notebook, move its widgets, save its pictures, and return a list of problems. */
async function lookAt(path, browser, { url, token }, { out, timeout }) {
  const page = await browser.newPage();
  await page.goto(`${url}doc/tree/notebooks/${encodeURIComponent(basename(path))}?token=${token}`);
  await page.waitForFunction(() => window.jupyterapp?.shell.currentWidget?.sessionContext);
  const problems = await runCells(page, Number(timeout));
  if (!problems.length) problems.push(...(await moveWidgets(page)));
  await photograph(page, basename(path, ".ipynb"), out);
  await page.evaluate(() => look.shutdown());
  await page.close();
  return problems;
}

async function main() {
  const options = { out: { type: "string" }, timeout: { type: "string" } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const { out = join(ROOT, "runs/screenshots"), timeout = "180" } = values;
  const all = (await fs.readdir(join(ROOT, "notebooks"))).filter((name) => name.endsWith(".ipynb")).sort();
  const notebooks = positionals.length ? positionals : all.map((name) => join(ROOT, "notebooks", name));

  const folder = await fs.mkdtemp(join(os.tmpdir(), "look-"));
  endings.push(() => fs.rm(folder, { recursive: true, maxRetries: 10 }));
  process.env.TMPDIR = folder; // files that others forget there are removed with the folder
  for (const path of notebooks) await fs.cp(path, join(folder, "notebooks", basename(path)));
  // The text of the notebooks shows pictures from there. Jupyter does not serve what a link leads to.
  await fs.cp(join(ROOT, "assets", "figures"), join(folder, "assets", "figures"), { recursive: true });
  const browser = await startBrowser(folder);
  const jupyterLab = await startJupyterLab(folder);
  for (const path of notebooks) {
    const started = Date.now();
    process.stdout.write(`${basename(path)}: `);
    const problems = await lookAt(path, browser, jupyterLab, { out, timeout });
    console.log([...problems, `${Math.round((Date.now() - started) / 1000)} s`].join("\n  "));
    if (problems.length) process.exitCode = 1;
  }
}

const interrupted = new Promise((_, reject) => {
  const stopBy = (signal) => reject(new Error(`\nStopped by ${signal}`));
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, stopBy);
});
try {
  await Promise.race([main(), interrupted]);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  while (endings.length) await endings.pop()().catch((error) => console.error(error.message));
}
process.exit();
