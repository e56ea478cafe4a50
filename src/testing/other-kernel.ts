/**
 * Another kernel than the host's: Debian's, with every filesystem driver, booted under QEMU without KVM (5 s).
 *
 *   disks ── virtio ── /dev/vda, /dev/vdb, …  ┐        a disk is a raw file, or served over NBD
 *   modules, tools, busybox, script ── initramfs ┤ kernel ── ttyS1 ── what the script printed
 *                                               └─────────── ttyS0 ── kernel's messages, shown when something fails
 *
 * One boot serves a whole test file: give it all disks and one script. Files are best made in the guest, from
 * /dev/urandom, and printed by `sha256sum`; the host compares two prints. A power failure is a QEMU that is killed:
 * what the guest had sent to its disks is there, what it held in memory is not.
 *
 *   const printed = await otherKernel(t, {
 *     modules: ["hfsplus", "nls_utf8"],       // and what they depend on, in that order
 *     disks: [path],
 *     script: `mount -t hfsplus /dev/vda /mnt; dd if=/dev/urandom of=/mnt/a bs=4k count=9; umount /mnt`,
 *   });
 *   if (printed === undefined) return;        // skipped: QEMU or the kernel are not installed
 *
 * The script runs under `sh -eu` of busybox with all its applets; /proc, /sys, /dev and /mnt are there.
 */
import { execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import type { TestContext } from "node:test";
import { requires, run, scratch } from "./tools.ts";

/** A disk that somebody serves over NBD. */
export interface NbdDisk {
  /** Path of the UNIX socket. */
  readonly socket: string;
  readonly exportName?: string;
  /** Whether the guest may discard; default true. */
  readonly discard?: boolean;
}

export interface OtherKernelOptions {
  /** Names of modules. What the kernel asks for by itself later does not come: name it too, as `crc32c_generic`. */
  readonly modules: readonly string[];
  /** Raw disks and served ones: /dev/vda, /dev/vdb, … A discard in the guest of a raw disk punches a hole. */
  readonly disks: readonly (string | NbdDisk)[];
  readonly script: string;
  /** Names of the host's programs that the script also needs; their libraries come with them. */
  readonly tools?: readonly string[];
  /** The power fails as soon as the script has printed this line. */
  readonly powerFailsAt?: string;
  /** What is done as soon as the script has printed a line. */
  readonly at?: Readonly<Record<string, () => void>>;
  /** Gives the guest eth0, on which 10.0.2.2 is the host's loopback; the module is virtio_net. */
  readonly network?: boolean;
  readonly timeoutMs?: number;
  readonly memoryMebibytes?: number;
}

const MODULE_BYTES_MAX = 64 * 1024 * 1024;
const EXIT = "other-kernel-exit:";
const COMMAND_LINE =
  "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on tsc=reliable 8250.nr_uarts=2";

/**
 * What the script printed on either output, up to the power failure where there is one; undefined when the test was
 * skipped.
 * @throws Error when the script fails, or the kernel
 */
export async function otherKernel(t: TestContext, options: OtherKernelOptions): Promise<string | undefined> {
  if (!requires(t, "qemu-system-x86_64", "busybox", "cpio", "setpriv")) return undefined;
  const version = kernelVersion(t);
  if (version === undefined) return undefined;
  const folder = scratch(t);
  const initramfs = makeInitramfs(folder, version, options);
  const messages = join(folder, "messages");
  const kernel = ["-kernel", `/boot/vmlinuz-${version}`, "-initrd", initramfs, "-append", COMMAND_LINE];
  const serials = ["-serial", `file:${messages}`, "-serial", "stdio"];
  const printed = await boot(t, options, [...kernel, ...serials]);
  const [output, status = "nothing"] = printed.split(EXIT).map((part, i) => (i === 0 ? part : part.trim()));
  if (options.powerFailsAt === undefined ? status !== "0" : !hasLine(output!, options.powerFailsAt)) {
    const heard = existsSync(messages) ? readFileSync(messages, "latin1") : "";
    throw new Error(`the other kernel's script ended with ${status}\n${output}\n${heard}`);
  }
  return output;
}

/** The newest kernel that is installed with its modules; undefined, and the test is skipped, without one. */
function kernelVersion(t: TestContext): string | undefined {
  const modules = existsSync("/lib/modules") ? readdirSync("/lib/modules") : [];
  const versions = modules.filter((version) => existsSync(`/boot/vmlinuz-${version}`));
  const newest = versions.toSorted((a, b) => a.localeCompare(b, "en", { numeric: true })).at(-1);
  if (newest !== undefined) return newest;
  if (process.env["CI"] === "true") throw new Error("needs a kernel in /boot with its modules");
  t.skip("needs a kernel in /boot with its modules");
  return undefined;
}

function makeInitramfs(folder: string, version: string, options: OtherKernelOptions): string {
  const root = join(folder, "root");
  const place = (path: string, content: string | Uint8Array): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
    chmodSync(join(root, path), 0o755);
  };
  for (const empty of ["dev", "proc", "sys", "mnt", "tmp", "etc", "run"]) {
    mkdirSync(join(root, empty), { recursive: true });
  }
  place("bin/busybox", readFileSync(run("sh", ["-c", "command -v busybox"]).trim()));
  const modules = inOrder(version, ["virtio_pci", "virtio_blk", ...options.modules]);
  modules.forEach((module) => place(`modules/${basename(module, ".xz")}`, unpackedModule(module)));
  (options.tools ?? []).forEach((tool) => placeProgram(root, tool));
  place("script", options.script);
  place("init", init(modules.map((module) => basename(module, ".xz"))));
  const initramfs = join(folder, "initramfs");
  const pack = 'cd "$1"; find . | cpio --quiet --create --format=newc --owner=0:0 > "$2"';
  run("sh", ["-c", pack, "sh", root, initramfs]);
  return initramfs;
}

function init(modules: readonly string[]): string {
  return `#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
for module in ${modules.join(" ")}; do insmod /modules/$module; done
sh -eu /script
echo "${EXIT}$?"
sync
stty -F /dev/ttyS1 >/dev/null # Returns when everything was sent.
reboot -f
`;
}

/** Paths of modules and all that they depend on, dependencies first. */
function inOrder(version: string, names: readonly string[]): string[] {
  const folder = `/lib/modules/${version}`;
  const nameOf = (path: string): string =>
    basename(path)
      .replace(/\.ko(\.\w+)?$/, "")
      .replaceAll("-", "_");
  const lines = readFileSync(join(folder, "modules.dep"), "utf8").trim().split("\n");
  const needs = new Map(
    lines.map((line) => {
      const [module, needed] = line.split(":") as [string, string];
      return [nameOf(module), { module, needed: needed.split(" ").filter(Boolean).map(nameOf) }];
    }),
  );
  const builtIn = new Set(readFileSync(join(folder, "modules.builtin"), "utf8").split("\n").map(nameOf));
  const order = new Set<string>();
  const load = (name: string): void => {
    const found = needs.get(name.replaceAll("-", "_"));
    if (found === undefined && !builtIn.has(name)) throw new Error(`kernel ${version} has no module ${name}`);
    if (found === undefined) return;
    found.needed.forEach(load);
    order.add(join(folder, found.module));
  };
  names.forEach(load);
  return [...order];
}

function unpackedModule(path: string): Uint8Array {
  if (!path.endsWith(".xz")) return readFileSync(path);
  return execFileSync("xz", ["--decompress", "--stdout", path], { maxBuffer: MODULE_BYTES_MAX });
}

/** Copies a program and the libraries that it is linked with to where they lie on the host. */
function placeProgram(root: string, name: string): void {
  const program = run("sh", ["-c", 'command -v "$1"', "sh", name]).trim();
  const libraries = run("sh", ["-c", 'ldd "$1" || true', "sh", program]);
  const paths = [...libraries.matchAll(/(\/\S+) \(0x/g)].map(([, path]) => path!);
  for (const path of [program, ...paths]) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    copyFileSync(path, join(root, path));
  }
}

/** Runs QEMU to its end, which it meets when the power fails, the time is up, or the test or this process ends. */
async function boot(t: TestContext, options: OtherKernelOptions, args: readonly string[]): Promise<string> {
  const machine = ["-M", "pc", "-cpu", "max", "-accel", "tcg", "-m", `${options.memoryMebibytes ?? 384}`];
  const bare = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
  const network = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="];
  const hardware = [...options.disks.flatMap(drive), ...(options.network === true ? network : [])];
  const qemu = spawn(
    "setpriv",
    ["--pdeathsig", "KILL", "qemu-system-x86_64", ...machine, ...bare, ...args, ...hardware],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  const kill = (): void => void qemu.kill("SIGKILL");
  t.after(kill);
  const timer = setTimeout(kill, options.timeoutMs ?? 240_000);
  const waiting = new Map(Object.entries(options.at ?? {}));
  if (options.powerFailsAt !== undefined) waiting.set(options.powerFailsAt, kill);
  let output = "";
  const collect = (text: string): void => {
    output += text;
    for (const [line, act] of waiting) {
      if (hasLine(output, line) && waiting.delete(line)) act();
    }
  };
  qemu.stdout.setEncoding("utf8").on("data", collect);
  qemu.stderr.setEncoding("utf8").on("data", collect);
  await new Promise((resolve, reject) => qemu.on("close", resolve).on("error", reject));
  clearTimeout(timer);
  return output;
}

function drive(disk: string | NbdDisk, index: number): string[] {
  const [settings, discard] =
    typeof disk === "string"
      ? [{ file: disk, format: "raw", cache: "unsafe" }, true]
      : [served(disk), disk.discard ?? true];
  const words = Object.entries({ ...settings, if: "none", id: `disk${index}`, discard: "unmap" });
  const may = discard ? "on" : "off";
  return [
    "-drive",
    words.map(([key, value]) => `${key}=${value.replaceAll(",", ",,")}`).join(","),
    "-device",
    `virtio-blk-pci,drive=disk${index},discard=${may},write-zeroes=${may}`,
  ];
}

/** The guest's flushes reach the server. */
const served = ({ socket, exportName = "" }: NbdDisk): Record<string, string> => ({
  driver: "nbd",
  "server.type": "unix",
  "server.path": socket,
  export: exportName,
  cache: "writeback",
  "detect-zeroes": "off",
});

const hasLine = (text: string, line: string): boolean => `\n${text}`.includes(`\n${line}\n`);
