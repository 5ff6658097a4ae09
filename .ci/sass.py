"""What the loops of a kernel cost on a card, read from its disassembly: a ranking, not a simulation.

An iteration of a loop takes each warp issue slots (one of the processor's four schedulers issues one instruction a clock),
tensor cores (clocks by shape and card) and shared memory (one wavefront of 128 bytes a clock and processor). With one block
on a processor these add up, for barriers keep its phases apart; each further block hides its share of what is not the
longest. Bank conflicts, caches, DRAM, latency and the launch are left out, so a prediction is an upper bound that ranks two
forms of one loop; between kernels it says what binds each.
"""

import collections
import re
import subprocess

# A card of each compute capability: its name, multiprocessors, GHz, clocks of an m16n8k16 product (half of them for
# m16n8k8) of 16-bit numbers with sums in f32 on one of four tensor cores; by block and by processor bytes of shared memory;
# threads and blocks of a processor. GeForce cards multiply at half rate where sums are f32; Hopper's mma.sync reaches two
# thirds of what wgmma does.
Card = collections.namedtuple("Card", "name processors ghz product shared shared_all threads blocks")
CARDS = {
    75: Card("T4", 40, 1.59, 16, 65536, 65536, 1024, 16),
    80: Card("A100", 108, 1.41, 8, 166912, 167936, 2048, 32),
    86: Card("RTX 3060", 28, 1.78, 32, 101376, 102400, 1536, 16),
    89: Card("RTX 4090", 128, 2.52, 32, 101376, 102400, 1536, 24),
    90: Card("H100", 132, 1.83, 6, 232448, 233472, 2048, 32),
    120: Card("RTX 5090", 170, 2.41, 32, 101376, 102400, 1536, 24),
}
REGISTERS = 65536

Instruction = collections.namedtuple("Instruction", "guard code operands")
Loop = collections.namedtuple("Loop", "slots products flops wavefronts generic matrices divisions spills")
Cost = collections.namedtuple("Cost", "blocks clocks binds teraflops")


def disassembled(disassembler, binary):
    """Instructions of a machine-code file in order, and where each label stands."""
    run = subprocess.run([disassembler, "-c", binary], capture_output=True, text=True, check=True)
    return parsed(run.stdout)


def parsed(text):
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)(.*?);", line):
            instructions.append(Instruction((found[1] or "").strip(), found[2], found[3].strip()))
    return instructions, labels


def spans(instructions, labels):
    """First and last instruction of each loop: a branch back and what it goes back to."""
    found = []
    for end, instruction in enumerate(instructions):
        target = re.search(r"`\((\.L\w+)\)", instruction.operands)
        if instruction.code.startswith("BRA") and target and labels.get(target[1], end + 1) < end:
            found.append((labels[target[1]], end))
    return found


def innermost(found):
    return [loop for loop in found if not any(other != loop and loop[0] <= other[0] and other[1] <= loop[1] for other in found)]


def width(code):
    """Wavefronts of an access to shared memory by a whole warp, without conflicts."""
    if code.startswith(("LDSM", "STSM")):
        count = re.search(r"\.([124])$|\.([124])\.", code)
        return int(count[1] or count[2]) if count else 1
    return 4 if ".128" in code else 2 if ".64" in code else 1


def measured(instructions):
    """What one warp does in an iteration of a loop of these instructions, or in a kernel without one."""
    base = lambda instruction: instruction.code.split(".")[0]
    products = [one for one in instructions if base(one) == "HMMA"]
    deep = sum("16816" in one.code for one in products)
    shared = [one for one in instructions if base(one) in ("LDS", "STS", "LDSM", "STSM", "LD", "ST")]
    correction = re.compile(r"(R\d+), (?:PT, PT, )?\1, 0x1\b")
    return Loop(
        slots=sum(base(one) != "NOP" for one in instructions),
        products=len(products),
        flops=4096 * deep + 2048 * (len(products) - deep),
        wavefronts=sum(width(one.code) for one in shared),
        generic=sum(base(one) in ("LD", "ST") for one in instructions),
        matrices=sum(base(one) == "LDSM" for one in instructions),
        # A quotient is guessed and then corrected, under a condition, by one.
        divisions=sum(bool(one.guard and base(one) in ("IADD3", "VIADD") and correction.match(one.operands)) for one in instructions),
        spills=sum(base(one) in ("LDL", "STL") for one in instructions),
    )


def hot(instructions, labels):
    """The innermost loop with most products; where no loop has any, all that the kernel does."""
    loops = [instructions[start : end + 1] for start, end in innermost(spans(instructions, labels))]
    best = max(map(measured, loops), key=lambda loop: (loop.flops, loop.slots), default=None)
    return best if best and best.products else measured(instructions)


def in_loops(instructions, labels):
    """The same of all innermost loops together: what must not be in any."""
    chosen = [one for start, end in innermost(spans(instructions, labels)) for one in instructions[start : end + 1]]
    return measured(chosen)


def resident(arch, threads, registers, shared):
    """Blocks that fit on a multiprocessor at once."""
    card = CARDS[arch]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = card.shared_all // (shared + 1024) if shared else card.blocks
    return max(0, min(by_registers, by_shared, card.threads // threads, card.blocks))


def cost(arch, loop, threads, registers, shared):
    """Clocks of an iteration for one block's share of a processor, what binds it, and the rate of its products."""
    card, warps = CARDS[arch], threads / 32
    blocks = resident(arch, threads, registers, shared)
    if not blocks:
        return Cost(0, 0.0, "does not fit", 0.0)
    shares = {
        "issue": loop.slots * warps / 4,
        "tensor cores": loop.flops / 4096 * card.product * warps / 4,
        "shared memory": loop.wavefronts * warps,
    }
    longest = max(shares, key=shares.get)
    clocks = shares[longest] + (sum(shares.values()) - shares[longest]) / blocks
    rate = loop.flops * warps / clocks * card.processors * card.ghz * 1e-3
    return Cost(blocks, clocks, longest, rate)


def peak(arch):
    """TFLOP/s of all tensor cores of a card."""
    card = CARDS[arch]
    return 4096 / card.product * 4 * card.processors * card.ghz * 1e-3
