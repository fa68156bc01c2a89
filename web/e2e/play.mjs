// Opens the page in headless Chromium, waits until it plays, watches for a while and prints what was measured.
// Exit 0: one JSON object on stdout. Exit 1: nothing plays, or it stopped for good; one line on stderr says why.
// Exit 2: wrong arguments.
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const usage =
  "usage: node web/e2e/play.mjs --url URL [--seconds 20] [--start-within 30] [--screenshot FILE] [--width 1280] [--height 800] [--dark] [--insecure]\n" +
  "--insecure takes any certificate. " +
  "CHROMIUM names the browser (default /usr/bin/chromium).";

function options() {
  try {
    const { values } = parseArgs({
      options: {
        url: { type: "string" },
        seconds: { type: "string", default: "20" },
        "start-within": { type: "string", default: "30" },
        screenshot: { type: "string" },
        width: { type: "string", default: "1280" },
        height: { type: "string", default: "800" },
        dark: { type: "boolean", default: false },
        insecure: { type: "boolean", default: false },
      },
    });
    const numbers = Object.fromEntries(
      ["seconds", "start-within", "width", "height"].map((name) => {
        const value = Number(values[name]);
        if (!(value > 0)) throw new Error(`--${name} must be a positive number, not "${values[name]}"`);
        return [name, value];
      }),
    );
    if (!values.url || !URL.canParse(values.url)) throw new Error("--url must be the page's address");
    return { ...values, ...numbers };
  } catch (error) {
    console.error(`${error.message}\n${usage}`);
    process.exit(2);
  }
}

async function launch() {
  const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
  try {
    return await chromium.launch({
      executablePath,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--autoplay-policy=no-user-gesture-required",
      ],
    });
  } catch (error) {
    throw new Error(`${executablePath} does not start (${error.message.split("\n")[0]}); install chromium or set CHROMIUM`);
  }
}

/** Reads the page's measurements every quarter of a second until done says so; fails after limit seconds. */
async function follow(page, limit, done, complaint) {
  const until = performance.now() + limit * 1000;
  for (;;) {
    const now = await page.evaluate(() => window.dandelion?.snapshot() ?? null);
    if (now && done(now)) return now;
    if (performance.now() > until) throw new Error(complaint(now));
    await page.waitForTimeout(250);
  }
}

const describe = (now) => {
  if (!now) return "the page's script did not run";
  const last = now.errors.at(-1);
  return `the page says "${now.state}"${last ? `, last error: ${last}` : ""}`;
};

async function main() {
  const wanted = options();
  const browser = await launch();
  try {
    const context = await browser.newContext({
      viewport: { width: wanted.width, height: wanted.height },
      ignoreHTTPSErrors: wanted.insecure,
      colorScheme: wanted.dark ? "dark" : "light",
    });
    const page = await context.newPage();
    const pageErrors = [];
    page.on("pageerror", (error) => pageErrors.push(`page: ${error.message}`));
    // Blocked by the content security policy, above all; failed loads are the player's to judge.
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) pageErrors.push(`console: ${message.text()}`);
    });
    const response = await page.goto(wanted.url, { timeout: 15_000, waitUntil: "domcontentloaded" });
    if (!response?.ok()) throw new Error(`${wanted.url} answered ${response?.status()}`);

    const playing = (now) => now.startup_ms !== null && now.played_seconds > 0 && now.frames_decoded > 0;
    const begun = await follow(page, wanted["start-within"], playing, (now) =>
      [`nothing plays after ${wanted["start-within"]} s: ${describe(now)}`, ...pageErrors].join("; "),
    );
    // Stalls stretch the watching; one that never ends is a failure.
    const target = begun.played_seconds + wanted.seconds;
    const end = await follow(page, 2 * wanted.seconds + 30, (now) => now.played_seconds >= target, (now) =>
      `played ${now?.played_seconds.toFixed(1)} s of ${target.toFixed(1)} s and no more: ${describe(now)}`,
    );
    if (wanted.screenshot) await page.screenshot({ path: wanted.screenshot });
    end.errors.push(...pageErrors);
    console.log(JSON.stringify(end));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error.message.split("\n")[0]);
  process.exitCode = 1;
});
